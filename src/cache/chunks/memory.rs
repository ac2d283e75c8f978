//! The chunks in memory: the least recently used go first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::Semaphore;

use super::answers::Answer;
use super::{Coming, Key};
use crate::cache::counters::{Counters, add};
use crate::oci::Digest;

pub struct Chunks {
    kept: LruCache<Key, Kept>,
    bytes: u64,
    pub limit: u64,
    pub coming: HashMap<Key, Coming>,
    pub answers: Vec<Answer>,
    /// Bytes that content under way may still take; there is none before there is compressed content.
    pub content_in_flight: Option<Arc<Semaphore>>,
    counters: Arc<Counters>,
}

struct Kept {
    bytes: Bytes,
    /// Fetched ahead, and no reader has come to it yet.
    ahead: bool,
}

impl Chunks {
    /// `limit`: bytes of kept chunks.
    pub fn new(limit: u64, counters: Arc<Counters>) -> Self {
        Self {
            kept: LruCache::unbounded(),
            bytes: 0,
            limit,
            coming: HashMap::new(),
            answers: Vec::new(),
            content_in_flight: None,
            counters,
        }
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.kept.contains(key)
    }

    /// For a reader.
    pub fn get(&mut self, key: &Key) -> Option<Bytes> {
        let kept = self.kept.get_mut(key)?;
        if std::mem::take(&mut kept.ahead) {
            add(&self.counters.ahead_used, kept.bytes.len() as u64);
        }
        Some(kept.bytes.clone())
    }

    /// `ahead`: nobody has asked for it yet.
    pub fn keep(&mut self, key: Key, bytes: Bytes, ahead: bool) {
        self.bytes += bytes.len() as u64;
        if let Some(old) = self.kept.put(key, Kept { bytes, ahead }) {
            self.gone(&old);
        }
        self.evict();
    }

    fn gone(&mut self, old: &Kept) {
        self.bytes -= old.bytes.len() as u64;
        if old.ahead {
            add(&self.counters.ahead_wasted, old.bytes.len() as u64);
        }
    }

    pub fn evict(&mut self) {
        while self.bytes > self.limit {
            let Some((_, old)) = self.kept.pop_lru() else { break };
            self.gone(&old);
        }
    }

    /// Gives up all of a blob.
    pub fn forget(&mut self, blob: &Digest) {
        let keys: Vec<Key> = self.kept.iter().map(|(key, _)| key).filter(|(_, of, _)| of == blob).cloned().collect();
        for key in keys {
            if let Some(old) = self.kept.pop(&key) {
                self.gone(&old);
            }
        }
    }
}

/// Takes memory away from the chunks, of which `least` bytes stay.
pub fn reserve(chunks: &Arc<Mutex<Chunks>>, bytes: u64, least: u64) -> Option<MemoryReservation> {
    let mut locked = chunks.lock().unwrap_or_else(PoisonError::into_inner);
    locked.limit = locked.limit.checked_sub(bytes).filter(|left| *left >= least)?;
    locked.evict();
    drop(locked);
    Some(MemoryReservation { chunks: Arc::clone(chunks), bytes })
}

/// Memory that is not for chunks, given back on drop.
pub struct MemoryReservation {
    chunks: Arc<Mutex<Chunks>>,
    bytes: u64,
}

impl MemoryReservation {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).limit += self.bytes;
    }
}
