//! Duplicates per million keys.
