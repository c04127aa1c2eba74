//! Cross-crate tests of CMF: vectors, mutation, laws and the command line.
