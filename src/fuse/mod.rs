//! The kernel side: translates FUSE requests to calls of `mount` and errors to errnos. The only user of fuser.
//! Called by `cli`; behaviour lives in `mount`, where it is tested without a mount.

mod adapter;
mod attach;
mod bridge;
mod errno;
mod mountinfo;
mod mountpoint;
mod session;
mod survey;

pub use attach::available;
pub use mountpoint::Mountpoint;
pub use session::{Session, Settings};
pub use survey::survey;

/// The artifact that an eo-mount mount at this place was made of, as its reference was written. Blocks on the file
/// system.
pub fn mounted_at(path: &std::path::Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let entry = mountinfo::at(&path).ok()??;
    (entry.fs_type == FS_TYPE).then_some(entry.source)
}

/// File system type in the mount table: `fuse` and our subtype.
const FS_TYPE: &str = "fuse.eo-mount";
