//! What is attached to a manifest, and to that, and so on.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::mount::Repository;
use crate::oci::{Digest, Referrer};

/// All together.
const MOST: usize = 10_000;
const AT_ONCE: usize = 8;

/// With what is attached to it in its turn.
pub struct Attached {
    pub referrer: Referrer,
    pub attached: Vec<Attached>,
}

/// `depth`: 1 for what is attached to `subject` itself.
pub async fn discover(
    repository: &Repository,
    subject: &Digest,
    artifact_type: Option<&str>,
    depth: usize,
) -> Result<Vec<Attached>> {
    let walk = Walk { repository, artifact_type, requests: Semaphore::new(AT_ONCE), room: AtomicUsize::new(MOST) };
    walk.below(subject.clone(), depth).await
}

struct Walk<'a> {
    repository: &'a Repository,
    artifact_type: Option<&'a str>,
    requests: Semaphore,
    /// How many more there may be.
    room: AtomicUsize,
}

impl Walk<'_> {
    fn below(&self, subject: Digest, depth: usize) -> BoxFuture<'_, Result<Vec<Attached>>> {
        async move {
            if depth == 0 {
                return Ok(Vec::new());
            }
            let referrers = {
                let _turn = self.requests.acquire().await;
                self.repository.referrers(&subject, self.artifact_type).await?
            };
            let take = |room: usize| room.checked_sub(referrers.len());
            if self.room.fetch_update(Relaxed, Relaxed, take).is_err() {
                let cause = format!("more than {MOST} manifests are attached");
                return Err(Error::new(ErrorKind::Limit, subject, cause).hint("ask for one --artifact-type"));
            }
            let attached = stream::iter(referrers).map(async |referrer| {
                let attached = self.below(referrer.descriptor.digest.clone(), depth.saturating_sub(1)).await?;
                Ok(Attached { referrer, attached })
            });
            attached.buffered(AT_ONCE).try_collect().await
        }
        .boxed()
    }
}
