//! Extended attributes: what the manifest says of a layer, why it failed, and what the archive brought along.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;

use super::layer::Contents;
use super::tree::Node;
use super::{Ino, Kind, Mount, Place};
use crate::blob::Digested;
use crate::error::{Error, Result};
use crate::index::{EntryId, LayerIndex, Segment};
use crate::oci::{Descriptor, Platform};

/// XATTR_NAME_MAX and XATTR_SIZE_MAX of Linux (limits.h), in bytes.
const LONGEST_NAME: usize = 255;
const LONGEST_VALUE: usize = 64 << 10;

type Xattr = (Vec<u8>, Vec<u8>);

impl Mount {
    pub async fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let xattrs = self.xattrs(ino).await?;
        Ok(xattrs.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
    }

    /// As many as `listxattr` can give out.
    pub async fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut room = LONGEST_VALUE;
        let mut names: Vec<_> = self.xattrs(ino).await?.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| {
            let fits = name.len() < room;
            room = room.saturating_sub(name.len().saturating_add(1));
            fits
        });
        Ok(names)
    }

    async fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        let mut xattrs = match self.place(ino)? {
            Place::Node(0) => {
                let mut xattrs = self.manifest_xattrs(0)?;
                xattrs.push(self.statistics());
                xattrs
            }
            Place::Node(id) => match self.tree.node(id) {
                Some(Node::Layer(number) | Node::LayerFile(number)) => self.layer_xattrs(number).await?,
                Some(Node::Manifest(number)) => self.manifest_xattrs(number)?,
                Some(Node::Config(number)) => {
                    self.manifest(number)?.manifest.config.as_ref().map_or_else(Vec::new, described)
                }
                Some(Node::Directory | Node::Blob(_)) | None => Vec::new(),
            },
            Place::Oci(number) => match self.oci_view()?.blob(number)? {
                Some(blob) => self.blob_xattrs(&blob).await,
                None => Vec::new(),
            },
            Place::Entry { layer, entry: LayerIndex::ROOT } => self.layer_xattrs(layer).await?,
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                let xattrs = contents.index.xattrs(entry);
                let mut xattrs: Vec<Xattr> = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                if contents.index.entry(entry).is_some_and(|entry| entry.kind == Kind::File) {
                    xattrs.retain(|(name, _)| !name.starts_with(b"user.eo."));
                    let blob = &self.layer(layer)?.descriptor;
                    let plain = Some(&contents).filter(|contents| contents.is_plain(&self.sources));
                    let ranges = plain.map_or_else(Vec::new, |contents| contents.data_ranges(entry));
                    let [verified, cached] = self.kept(blob, ranges).await;
                    xattrs.push(verified);
                    // Of a compressed layer the blob is kept, and no bytes of it are a file's.
                    xattrs.extend(plain.is_some().then_some(cached));
                }
                xattrs
            }
        };
        xattrs.retain(|(name, value)| {
            name.starts_with(b"user.")
                && name.len() <= LONGEST_NAME
                && !name.contains(&0)
                && value.len() <= LONGEST_VALUE
        });
        Ok(xattrs)
    }

    fn statistics(&self) -> Xattr {
        let chunks = &self.sources.chunks;
        let disk = chunks.disk().map(|disk| json!({ "used": disk.counted(), "limit": disk.limit() }));
        let stats = json!({
            "dataset_bytes": self.usage().bytes,
            "read_bytes": self.given.load(Relaxed),
            "served": chunks.counters().served(),
            "network": self.traffic.count(),
            "read_ahead": chunks.counters().ahead(),
            "cache": disk,
        });
        (b"user.eo.stats".to_vec(), stats.to_string().into_bytes())
    }

    fn manifest_xattrs(&self, number: usize) -> Result<Vec<Xattr>> {
        let part = self.manifest(number)?;
        let mut xattrs = described(&part.descriptor);
        let more = [
            ("user.oci.artifact-type", part.artifact_type.clone()),
            ("user.oci.platform", part.platform.as_ref().map(Platform::to_string)),
            ("user.eo.error", part.error.as_ref().map(Error::to_string)),
        ];
        xattrs.extend(more.into_iter().filter_map(|(name, value)| Some((name.into(), value?.into()))));
        Ok(xattrs)
    }

    async fn layer_xattrs(&self, number: usize) -> Result<Vec<Xattr>> {
        let layer = self.layer(number)?;
        let mut xattrs = self.blob_xattrs(&layer.descriptor).await;
        if let Some(error) = layer.error() {
            xattrs.push((b"user.eo.error".to_vec(), error.to_string().into()));
        }
        Ok(xattrs)
    }

    async fn blob_xattrs(&self, blob: &Descriptor) -> Vec<Xattr> {
        let mut xattrs = described(blob);
        xattrs.extend(self.kept(blob, std::iter::once(0..blob.size).collect()).await);
        xattrs
    }

    /// Whether all of the blob was seen to have its digest, or all chunks of these ranges those of an index that the user
    /// trusts; and how many bytes of the ranges are on disk.
    async fn kept(&self, blob: &Descriptor, ranges: Vec<Range<u64>>) -> [Xattr; 2] {
        let is_right = |digested: &Arc<Digested>| ranges.iter().all(|range| digested.is_right(&blob.digest, range));
        let is_chunk = !ranges.is_empty() && self.digested.as_ref().is_some_and(is_right);
        let (cached, is_checked) = self.sources.chunks.kept_on_disk(blob, ranges).await;
        let verified = match (is_checked, is_chunk) {
            (true, _) => "blob",
            (_, true) => "chunk",
            _ => "unverified",
        };
        [(b"user.eo.verified".to_vec(), verified.into()), (b"user.eo.cached-bytes".to_vec(), cached.to_string().into())]
    }
}

impl Contents {
    /// Of the blob.
    fn data_ranges(&self, file: EntryId) -> Vec<Range<u64>> {
        let data = self.index.segments(file, 0..u64::MAX).filter_map(|segment| match segment {
            Segment::Data(range) => Some(range),
            Segment::Hole(_) => None,
        });
        data.collect()
    }
}

fn described(descriptor: &Descriptor) -> Vec<Xattr> {
    let mut xattrs: Vec<Xattr> = vec![
        (b"user.oci.digest".to_vec(), descriptor.digest.as_str().into()),
        (b"user.oci.size".to_vec(), descriptor.size.to_string().into()),
        (b"user.oci.media-type".to_vec(), descriptor.media_type.clone().into()),
    ];
    for (key, value) in &descriptor.annotations {
        xattrs.push((format!("user.oci.annotation.{key}").into(), value.clone().into()));
    }
    xattrs
}
