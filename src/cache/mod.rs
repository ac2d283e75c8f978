//! What is kept so that it need not be fetched again: chunks in memory, and the cache folder.
//! Called by `mount` and `blob`; uses the core and the seam in `blob`.

mod checkpoints;
mod chunks;
mod folder;

pub use chunks::{ChunkCache, MemoryReservation};
pub use folder::{CacheFolder, Reservation};
