//! The kernel side: translates FUSE requests to calls of `mount` and errors to errnos. The only user of fuser.
//! Called by `cli`; behaviour lives in `mount`, where it is tested without a mount.
