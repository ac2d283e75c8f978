//! The kernel side: translates FUSE requests to calls of `mount` and errors to errnos. The only user of fuser.
//! Called by `cli`; behaviour lives in `mount`, where it is tested without a mount.

mod adapter;
mod attach;
mod bridge;
mod errno;
mod mountinfo;
mod mountpoint;
mod session;

pub use attach::available;
pub use mountpoint::Mountpoint;
pub use session::{Session, Settings};

/// File system type in the mount table: `fuse` and our subtype.
const FS_TYPE: &str = "fuse.eo-mount";
