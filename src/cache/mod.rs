//! What is kept so that it need not be fetched again: chunks in memory, and the cache folder with
//! chunks, checkpoints, indexes and manifests.
//! Called by `mount` and `blob`; uses the core and the seam in `blob`.

mod blob_file;
mod checkpoints;
mod chunks;
mod counters;
mod cut;
mod disk;
mod eviction;
mod folder;
mod indexes;
mod manifests;
mod own_file;
mod small_files;
mod survey;
mod turns;
mod upkeep;
mod uploads;

pub use chunks::{ChunkCache, LONGEST_RUN, MemoryReservation};
pub use counters::{Ahead, Counters, Served};
pub use disk::DiskCache;
pub use folder::{CacheFolder, Reservation};
pub use indexes::Indexes;
pub use manifests::{Manifests, Resolution};
pub use survey::survey;
pub use turns::FolderTurns;
pub use upkeep::{Checked, Cleared, KeptBlob, Sizes, Upkeep};
pub use uploads::{KeptUpload, Uploads};

/// Bytes of a chunk. A read of 4 KiB may lie across two, because members of an archive begin anywhere:
/// it fetches 128 KiB at most.
pub const CHUNK: u64 = 64 << 10;

/// Seconds since 1970.
fn seconds_now() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
