//! How much an archive may ask for. A reached limit is an error that names it, but for those of Linux: a member that no
//! file system can hold is left out, with a warning.

/// Every number is a count or bytes; the field's name is what the error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a member's name or link target (Linux: `PATH_MAX`, less the NUL at the end).
    pub name_bytes: u64,
    /// Bytes between two slashes of a name (Linux: `NAME_MAX`).
    pub part_bytes: u64,
    /// Parts of a name, hence directories below each other.
    pub depth: u64,
    /// Bytes of one extension header: PAX records or a GNU long name.
    pub pax_bytes: u64,
    /// Bytes of one member's extended attributes, names and values together.
    pub xattr_bytes: u64,
    /// Pieces of data in one sparse member.
    pub sparse_extents: u64,
    /// Members in an archive, and entries in its index (directories without a member of their own are entries too).
    pub entries: u64,
    /// Symbolic links followed to place one member (Linux: `MAXSYMLINKS`); one more makes it a dangling link, not an
    /// error.
    pub link_hops: u64,
    /// Parts of symbolic links followed to place all members of a layer.
    pub link_parts: u64,
    /// Bytes of memory that one layer's index takes while it is built, and after.
    pub index_bytes: u64,
    /// Bytes of the footer of an attached index: 60,000 layers.
    pub footer_bytes: u64,
    /// Warnings kept of one layer; the rest is only counted.
    pub warnings: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            name_bytes: 4095,
            part_bytes: 255,
            depth: 1024,
            pax_bytes: 1 << 20,
            xattr_bytes: 128 << 10,
            sparse_extents: 1_000_000,
            entries: 10_000_000,
            link_hops: 40,
            link_parts: 10_000_000,
            index_bytes: 256 << 20,
            footer_bytes: 8 << 20,
            warnings: 100,
        }
    }
}
