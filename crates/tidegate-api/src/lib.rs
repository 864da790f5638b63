//! The wire forms of Tidegate's HTTP API: what a request and an answer look like, whoever sends them.
