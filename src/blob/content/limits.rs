//! How much a compressed layer may ask for. A reached limit is an error that names it.

/// Every number is a count or bytes; the field's name is what the error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentLimits {
    /// Bytes of content.
    pub content_bytes: u64,
    /// Bytes of content a byte of blob, looked at from `expansion_from` on. DEFLATE cannot reach 1032; what the others
    /// can, no archive of data does.
    pub expansion: u64,
    /// Bytes of content up to which any expansion will do.
    pub expansion_from: u64,
    /// Places where decoding can start: checkpoints, frames and pieces. 48 bytes of memory each.
    pub points: u64,
    /// Bytes of memory that one decoder may take: the window of zstd, the dictionary of xz.
    pub window_bytes: u64,
}

impl Default for ContentLimits {
    fn default() -> Self {
        Self {
            content_bytes: 1 << 40,
            expansion: 1100,
            expansion_from: 1 << 30,
            points: 1 << 20,
            window_bytes: 128 << 20,
        }
    }
}
