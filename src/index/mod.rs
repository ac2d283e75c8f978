//! Tar indexing without IO, clock or threads: bytes in, members out, and the index that they make.
//! Called by `mount`; may use `error` only.
