//! A store that is somebody else's to keep: the contract over Tidegate's HTTP API.
