//! The CMF container: bytes to checked views, writer and reference decode.
