//! Benchmarks of CMF against its peers, one ratio a row.
