//! Fetches what was chosen into the cache folder, the same way as reads do.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use futures_util::{StreamExt, stream};

use super::Mount;
use super::select::{Chosen, Failed, Selection, joined};
use crate::blob::BlobSource;
use crate::cache::{CHUNK, DiskCache, LONGEST_RUN};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, LayerIndex, Segment};
use crate::oci::Descriptor;

/// Runs of one layer that may fail in a row; the rest of it is not tried then.
const LAYER_GIVEN_UP: u32 = 16;
/// Runs in a row for which the registry cannot be reached; nothing more is tried then.
const REGISTRY_GIVEN_UP: u32 = 32;
/// Layers indexed at once.
const INDEXED_AT_ONCE: usize = 8;

/// What is to be fetched.
pub struct Plan {
    parts: Vec<Part>,
    failed: Vec<Failed>,
    disk: Arc<DiskCache>,
    /// Files chosen one by one or by folder; whole layers are not counted here.
    pub files: u64,
    /// Bytes of blobs, in whole chunks.
    pub wanted: u64,
    /// Of them, here already.
    pub cached: u64,
}

/// Of one layer.
struct Part {
    layer: usize,
    blob: Descriptor,
    /// None: all of it.
    files: Option<Vec<EntryId>>,
    /// Of an archive whose members lie in the blob as they are.
    is_plain: bool,
    /// Chunks: sorted, without overlap.
    wanted: Vec<Range<u64>>,
    /// Chunks, at most [`LONGEST_RUN`] each.
    missing: Vec<Range<u64>>,
}

pub struct Fetched {
    /// Bytes of blobs.
    pub bytes: u64,
    pub failed: Vec<Failed>,
}

impl Plan {
    pub fn layers(&self) -> usize {
        self.parts.len()
    }
}

impl Mount {
    /// Looks what is missing, and whether all of it can be kept.
    pub async fn plan(&self, selection: Selection) -> Result<Plan> {
        let disk = self.sources.chunks.disk().cloned().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "prefetch", "there is no cache on disk to fetch into")
                .hint("give a folder that can be written with --cache-dir, and no --no-disk-cache")
        })?;
        let mut parts = Vec::new();
        let mut files = 0;
        let mut seen = HashSet::new();
        for (layer, chosen) in selection.layers {
            let blob = self.layer(layer)?.descriptor.clone();
            let (files_of_it, is_plain, wanted) = match chosen {
                // The same layer may stand in the manifest twice.
                Chosen::Whole if !seen.insert(blob.digest.clone()) => continue,
                Chosen::Whole => (None, false, whole(&blob)),
                Chosen::Files(mut chosen) => {
                    chosen.sort();
                    chosen.dedup();
                    files += chosen.len() as u64;
                    let contents = self.contents(layer).await?;
                    // What members of other archives are decoded from is somewhere in the blob.
                    let is_plain = contents.is_plain(&self.sources);
                    let wanted = if is_plain { chunks_of(&contents.index, &chosen) } else { whole(&blob) };
                    (Some(chosen), is_plain, wanted)
                }
            };
            parts.push(Part { layer, blob, files: files_of_it, is_plain, wanted, missing: Vec::new() });
        }
        let sized = |parts: &[Part], chunks: fn(&Part) -> &[Range<u64>]| {
            parts.iter().map(|part| bytes_of(&part.blob, chunks(part))).sum::<u64>()
        };
        let wanted = sized(&parts, |part| &part.wanted);
        let looking = Arc::clone(&disk);
        let looked = tokio::task::spawn_blocking(move || {
            for part in &mut parts {
                part.missing = part.missing_on(&looking);
            }
            let cached = wanted.saturating_sub(sized(&parts, |part| &part.missing));
            looking.room(cached).map(|room| (parts, cached, room))
        });
        let failed = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Io, "prefetch", error);
        let (parts, cached, room) = looked.await.map_err(|panic| failed(&panic))?.map_err(|error| failed(&error))?;
        if wanted > room {
            let limit = disk.limit();
            let cause =
                format!("{wanted} bytes are wanted, and {room} can be kept, of the {limit} that the cache may hold");
            return Err(Error::new(ErrorKind::NoSpace, "prefetch", cause)
                .hint("allow more with --cache-size, make room on the disk, or choose less"));
        }
        Ok(Plan { parts, failed: selection.failed, disk, files, wanted, cached })
    }

    /// Fetches what is missing, `jobs` runs at once, and goes on when one fails. `progress` is told of bytes that came.
    pub async fn fetch(&self, plan: Plan, jobs: usize, progress: impl Fn(u64)) -> Fetched {
        let Plan { parts, failed, disk, .. } = plan;
        let mut fetched = Fetched { bytes: 0, failed };
        let in_a_row: Vec<AtomicU32> = parts.iter().map(|_| AtomicU32::new(0)).collect();
        let unreachable = AtomicU32::new(0);
        let runs = parts.iter().zip(&in_a_row).enumerate().flat_map(|(place, (part, in_a_row))| {
            part.missing.iter().map(move |run| (place, part, in_a_row, run.clone()))
        });
        let mut results = stream::iter(runs)
            .map(|(place, part, in_a_row, run)| {
                let unreachable = &unreachable;
                async move {
                    if in_a_row.load(Relaxed) >= LAYER_GIVEN_UP || unreachable.load(Relaxed) >= REGISTRY_GIVEN_UP {
                        return (place, run, Err(None));
                    }
                    let bytes = run.start * CHUNK..(run.end * CHUNK).min(part.blob.size);
                    let result = self.sources.chunks.read(&part.blob, bytes).await;
                    match &result {
                        Ok(_) => [in_a_row, unreachable].into_iter().for_each(|count| count.store(0, Relaxed)),
                        Err(error) => {
                            in_a_row.fetch_add(1, Relaxed);
                            if matches!(error.kind, ErrorKind::Unreachable | ErrorKind::TimedOut) {
                                unreachable.fetch_add(1, Relaxed);
                            }
                        }
                    }
                    (place, run, result.map(|bytes| bytes.len() as u64).map_err(Some))
                }
            })
            .buffer_unordered(jobs);
        let mut failures: Vec<Vec<(Range<u64>, Option<Error>)>> = parts.iter().map(|_| Vec::new()).collect();
        while let Some((place, run, result)) = results.next().await {
            match result {
                Ok(bytes) => {
                    fetched.bytes += bytes;
                    progress(bytes);
                }
                Err(error) => {
                    failures.get_mut(place).into_iter().for_each(|of_part| of_part.push((run.clone(), error.clone())))
                }
            }
        }
        drop(results);
        self.settle().await;
        for (part, failures) in parts.iter().zip(&mut failures) {
            let given_up = || Error::new(ErrorKind::Unreachable, &part.blob.digest, "not tried after so many failures");
            let first = failures.iter().find_map(|(_, error)| error.clone()).unwrap_or_else(given_up);
            if failures.is_empty() {
                let lost = if self.sources.chunks.is_wrong(&part.blob) {
                    Error::new(
                        ErrorKind::Corrupt,
                        &part.blob.digest,
                        "what was fetched has another digest; it is dropped",
                    )
                } else {
                    let cause = "it was fetched, but could not be kept in the cache folder";
                    Error::new(ErrorKind::NoSpace, &part.blob.digest, cause)
                };
                failures.extend(part.missing_on(&disk).into_iter().map(|run| (run, Some(lost.clone()))));
            }
            let failures = failures.iter().map(|(run, error)| (run, error.as_ref().unwrap_or(&first)));
            fetched.failed.extend(self.name_failures(part, &failures.collect::<Vec<_>>()));
        }
        let whole = parts.iter().zip(&failures).filter(|(_, failures)| failures.is_empty()).map(|(part, _)| part.layer);
        let kept: Vec<_> = stream::iter(whole)
            .map(async |layer| {
                self.keep_index(layer).await.map_err(|error| Failed { path: self.layer_path(layer), error })
            })
            .buffer_unordered(INDEXED_AT_ONCE)
            .collect()
            .await;
        fetched.failed.extend(kept.into_iter().filter_map(Result::err));
        fetched
    }

    /// So that the layer is listed without the registry, too.
    async fn keep_index(&self, number: usize) -> Result<()> {
        if self.sources.indexes.is_none() {
            return Ok(());
        }
        let is_archive = self.layer_nodes.get(number).is_some_and(Option::is_some);
        match self.layer(number)?.known() {
            Some(contents) => contents.kept.clone().await,
            None if is_archive => self.index_ahead(number).await.map(drop),
            None => Ok(()),
        }
    }

    /// Each file once; a layer that is wanted as a whole has no files.
    fn name_failures(&self, part: &Part, failures: &[(&Range<u64>, &Error)]) -> Vec<Failed> {
        let Some((_, first)) = failures.first() else { return Vec::new() };
        let layer = self.layer_path(part.layer);
        let contents = self.layers.get(part.layer).and_then(|layer| layer.known());
        let (Some(files), Some(contents)) = (&part.files, contents) else {
            return vec![Failed { path: layer, error: (*first).clone() }];
        };
        let error_of = |file: EntryId| {
            let of_file = if part.is_plain { chunks_of(&contents.index, &[file]) } else { whole(&part.blob) };
            let overlaps = |run: &Range<u64>| of_file.iter().any(|own| own.start < run.end && run.start < own.end);
            failures.iter().find(|(run, _)| overlaps(run)).map(|(_, error)| (*error).clone())
        };
        let errors: HashMap<EntryId, Error> = files.iter().filter_map(|file| Some((*file, error_of(*file)?))).collect();
        let mut failed = Vec::new();
        let mut waiting = vec![(LayerIndex::ROOT, layer)];
        while let Some((directory, path)) = waiting.pop() {
            for child in contents.index.children(directory) {
                let path = joined(&path, contents.index.name_of(child));
                if let Some(error) = errors.get(&child.entry()) {
                    failed.push(Failed { path, error: error.clone() });
                } else if !contents.index.children(child.entry()).is_empty() {
                    waiting.push((child.entry(), path));
                }
            }
        }
        failed
    }

    fn layer_path(&self, number: usize) -> String {
        self.tree.path_of_layer(number).unwrap_or_else(|| format!("layer {number}"))
    }
}

impl Part {
    /// Blocks on the disk.
    fn missing_on(&self, disk: &DiskCache) -> Vec<Range<u64>> {
        disk.missing(&self.blob, &self.wanted, LONGEST_RUN)
    }
}

fn whole(blob: &Descriptor) -> Vec<Range<u64>> {
    std::iter::once(0..blob.size.div_ceil(CHUNK)).filter(|chunks| !chunks.is_empty()).collect()
}

fn bytes_of(blob: &Descriptor, chunks: &[Range<u64>]) -> u64 {
    chunks.iter().map(|run| (run.end * CHUNK).min(blob.size).saturating_sub(run.start * CHUNK)).sum()
}

/// Chunks that hold these files.
fn chunks_of(index: &LayerIndex, files: &[EntryId]) -> Vec<Range<u64>> {
    let data = files.iter().flat_map(|file| {
        index.segments(*file, 0..u64::MAX).filter_map(|segment| match segment {
            Segment::Data(range) => Some(range.start / CHUNK..range.end.div_ceil(CHUNK)),
            Segment::Hole(_) => None,
        })
    });
    let mut chunks: Vec<Range<u64>> = data.filter(|run| !run.is_empty()).collect();
    chunks.sort_by_key(|run| run.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for run in chunks {
        match merged.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push(run),
        }
    }
    merged
}
