//! What the SQLite engine does: the conformance suite of every engine, and what only this one has.

mod bench_free;
