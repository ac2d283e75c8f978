//! How much lies below a place of the tree.

use crate::error::Result;
use crate::mount::{Found, Ino, Kind, Mount};

/// In bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// That hold data: holes are not counted, and a file with several names is once.
    pub bytes: u64,
    /// Of them, in the cache folder; of compressed layers that is not known.
    pub in_cache: u64,
}

/// Of a file, or of a folder with all that is below. Layers that are not indexed are.
pub async fn size_of(mount: &Mount, top: &Found) -> Result<Size> {
    let mut size = Size::default();
    let mut seen = std::collections::HashSet::new();
    let mut waiting: Vec<(Ino, Kind)> = vec![(top.ino, top.kind)];
    while let Some((ino, kind)) = waiting.pop() {
        match kind {
            Kind::Directory => {
                let children = mount.children(ino).await?;
                waiting.extend(children.into_iter().map(|(_, ino, kind)| (ino, kind)));
            }
            Kind::File => {
                let found = mount.attributes(ino).await?;
                if found.nlink > 1 && !seen.insert(ino) {
                    continue;
                }
                for range in mount.data_ranges(found).await? {
                    size.bytes = size.bytes.saturating_add(range.end.saturating_sub(range.start));
                }
                let cached = mount.xattr(ino, b"user.eo.cached-bytes").await?;
                let cached = cached.and_then(|text| String::from_utf8(text).ok()?.parse::<u64>().ok());
                size.in_cache = size.in_cache.saturating_add(cached.unwrap_or(0));
            }
            _ => {}
        }
    }
    Ok(size)
}
