//! What readers were given and from where, and what read-ahead was good for. In bytes, since the mount began.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[derive(Debug, Default)]
pub struct Counters {
    pub(super) memory: AtomicU64,
    pub(super) disk: AtomicU64,
    pub(super) network: AtomicU64,
    pub(super) ahead_fetched: AtomicU64,
    pub(super) ahead_used: AtomicU64,
    pub(super) ahead_wasted: AtomicU64,
}

/// Bytes that the chunks gave out, by where they were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Served {
    pub memory: u64,
    pub disk: u64,
    /// Also where the reader only waited for the rest of what was under way.
    pub network: u64,
}

/// Bytes of chunks. What is in none of the last two may still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Ahead {
    pub fetched: u64,
    pub used: u64,
    /// Left memory before anybody came to it.
    pub wasted: u64,
}

impl Counters {
    pub fn served(&self) -> Served {
        Served { memory: self.memory.load(Relaxed), disk: self.disk.load(Relaxed), network: self.network.load(Relaxed) }
    }

    pub fn ahead(&self) -> Ahead {
        Ahead {
            fetched: self.ahead_fetched.load(Relaxed),
            used: self.ahead_used.load(Relaxed),
            wasted: self.ahead_wasted.load(Relaxed),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Relaxed);
}
