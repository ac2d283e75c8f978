//! How many requests are under way at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::oci::Digest;

pub(super) struct Connections {
    all: Semaphore,
    /// Most of them for one blob: where its storage stalls, others go on.
    of_a_blob: usize,
    /// Of the blobs that are being read.
    blobs: Mutex<HashMap<Digest, Weak<Semaphore>>>,
}

impl Connections {
    /// `all`: to the registry, at least 1.
    pub fn new(all: usize) -> Self {
        Self { all: Semaphore::new(all), of_a_blob: (all - 1).max(1), blobs: Mutex::default() }
    }

    /// Waits for leave to send a request, which ends when the result is dropped.
    pub async fn acquire(&self, blob: &Digest) -> (Option<OwnedSemaphorePermit>, Option<SemaphorePermit<'_>>) {
        // The semaphores are never closed.
        let own = self.of(blob).acquire_owned().await.ok();
        (own, self.all.acquire().await.ok())
    }

    fn of(&self, blob: &Digest) -> Arc<Semaphore> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = blobs.get(blob).and_then(Weak::upgrade) {
            return known;
        }
        blobs.retain(|_, semaphore| semaphore.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.of_a_blob));
        blobs.insert(blob.clone(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_blob_whose_requests_hang_leaves_room_for_others() {
        let connections = Connections::new(16);
        let (stalled, other) = (Digest::sha256_of(b"stalled"), Digest::sha256_of(b"other"));
        let mut held = Vec::new();
        for _ in 0..15 {
            held.push(connections.acquire(&stalled).now_or_never().expect("room"));
        }
        assert!(connections.acquire(&stalled).now_or_never().is_none());
        drop(connections.acquire(&other).now_or_never().expect("room for others"));
        held.pop();
        assert!(connections.acquire(&stalled).now_or_never().is_some());
        drop(held);
        connections.acquire(&other).await;
        assert_eq!(connections.blobs.lock().unwrap().len(), 1, "blobs nobody reads are forgotten");
    }
}
