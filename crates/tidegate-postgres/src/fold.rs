//! Sums up what commits added to depths and counters.
