//! Producing and moving artifacts: what fills an image layout, and what fills layers.
//! Called by `cli`; uses `mount` and all layers below.

pub mod copy;
pub mod diff;
mod extract;
mod folder;
mod layout_writer;
pub mod pack;
pub mod pull;
pub mod push;
mod size;

pub use layout_writer::{Blob, BlobWriter, LayoutWriter};
pub use size::{Size, size_of};
