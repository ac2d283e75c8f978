//! What an archive holds: scanners that are given bytes and say which they need next, and the tree made of its members.
//! Called by `mount`, `cache` and `blob`; uses nothing but `error` and `oci::Digest`: no IO, no clock, no threads.
//! An archive means what GNU tar 1.34 extracts from it (`tar -x`); where we differ, `ScanError` and `LayerIndexBuilder`
//! say so.
// Beside what lib.rs denies.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod attached;
mod build;
mod claim;
mod codec;
mod error;
mod header;
mod indexer;
mod layer;
mod limits;
mod member;
mod number;
mod path;
mod pax;
mod pieces;
mod predict;
mod scan;
mod segment;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod zip;

pub use attached::{
    AttachedBlob, AttachedLayer, AttachedPart, ChunkDigests, DIGEST_CHUNK, Frame, TRAILER, footer_length, read_footer,
    write_attached,
};
pub use build::LayerIndexBuilder;
pub use claim::{Headers, Renumbered};
pub use codec::{CodecError, Content, decode, encode};
pub use error::ScanError;
pub use indexer::{Indexer, Tuning};
pub use layer::{Dirent, Entry, EntryId, LayerIndex, Segment, Segments};
pub use limits::Limits;
pub use member::{Kind, Member, MemberKind, Mtime, SparseExtent};
pub use path::parts;
pub use predict::Habits;
pub use scan::{BLOCK, Scanner, Step, TAIL, is_header};
pub use stream::{StreamIndexer, Streamed};
pub use zip::{Method, ZipError, ZipIndex, ZipMember, ZipScanner, ZipStep, data_start};
