//! A program that opens a path in a layer which nobody has listed will read something there. While the layer is indexed, which
//! takes some round trips, the line is idle: if the path leads to the layer's first file, the layer's start is fetched meanwhile.

use std::time::{Duration, Instant};

use super::layer::{Layer, Sources};
use crate::index::{Scanner, Step};

/// Bytes that tell what the first file is.
const HEAD: u64 = 128 << 10;
/// Where they take longer, the line is needed for the index.
const FAST: Duration = Duration::from_millis(100);
/// Bytes of the end: small files like to be there, and their headers need not be asked for then.
const TAIL: u64 = 512 << 10;
/// Bytes fetched at once, more each time, as long as the index is not there.
const STEPS: [u64; 3] = [2 << 20, 4 << 20, 2 << 20];

/// `name`: of the entry of the layer's directory that somebody looks up.
pub async fn begin(layer: &Layer, sources: &Sources, name: &[u8]) {
    let (blob, start) = (&layer.descriptor, Instant::now());
    let mut end = HEAD.min(blob.size);
    if !sources.data.expect(blob, 0..end).await || start.elapsed() > FAST {
        return;
    }
    let Some(head) = sources.chunks.kept(blob, &(0..end)) else { return };
    let Ok(Step::Member(first)) = Scanner::open_ended(sources.indexing.limits).step(0, &head) else { return };
    let path = first.path.strip_prefix(b"./").unwrap_or(&first.path);
    if path.split(|byte| *byte == b'/').next() != Some(name) {
        return;
    }
    let tail = blob.size.saturating_sub(TAIL).max(end)..blob.size;
    let fetch_tail = sources.data.expect(blob, tail.clone());
    let fetch_start = async {
        for step in STEPS {
            let next = end.saturating_add(step).min(tail.start);
            if layer.known().is_some() || next <= end || !sources.data.expect(blob, end..next).await {
                return;
            }
            end = next;
        }
    };
    tokio::join!(fetch_tail, fetch_start);
}
