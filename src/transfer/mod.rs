//! Producing and moving artifacts: what fills an image layout, and what fills layers.
//! Called by `cli`; uses `mount` and all layers below.

pub mod copy;
pub mod diff;
mod discover;
mod extract;
mod fetch;
mod folder;
mod layout_writer;
pub mod pack;
pub mod pull;
pub mod push;
mod referrers_tag;
mod size;

pub use discover::{Attached, discover};
pub use layout_writer::{Blob, BlobWriter, LayoutWriter};
pub use referrers_tag::list_by_tag;
pub use size::{Size, size_of};
