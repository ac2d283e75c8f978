//! Counts what goes over the network, and slows it down where that is wanted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::bandwidth::Bandwidth;

#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    bandwidth: Option<Bandwidth>,
}

/// Since the mount began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct TrafficCount {
    /// Those for tokens and those that a redirect leads to, too.
    pub requests: u64,
    /// Requests beyond the first for the same thing.
    pub retries: u64,
    /// Of response bodies.
    pub bytes: u64,
}

impl Traffic {
    /// `bandwidth`: bytes a second.
    pub(super) fn limited(bandwidth: Option<u64>) -> Self {
        Self { bandwidth: bandwidth.map(Bandwidth::new), ..Self::default() }
    }

    pub fn count(&self) -> TrafficCount {
        TrafficCount {
            requests: self.requests.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until more may come.
    pub(super) async fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.pass(bytes).await;
        }
    }
}
