//! What is kept so that it need not be fetched again: chunks in memory, the cache folder, and indexes in it.
//! Called by `mount` and `blob`; uses the core and the seam in `blob`.

mod chunks;
mod folder;
mod indexes;

pub use chunks::ChunkCache;
pub use folder::{CacheFolder, Reservation};
pub use indexes::Indexes;
