//! Layers into files: which, where to, and all of them at once.

mod blob;
mod chosen;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

pub use blob::There;
use blob::{PIECES, Place};
pub use chosen::{Chosen, choose};

use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Failed, Mount};
use crate::oci::Descriptor;
use crate::transfer::folder::{self, Folder};

/// Layers fetched at once: one finishes while others come.
const LAYERS: usize = 4;

#[derive(Debug, Clone)]
pub struct Options {
    pub output: PathBuf,
    /// Titles may lead out of `output`.
    pub allow_path_traversal: bool,
    /// A file that is there stays, and is an error if it is another.
    pub keep_old_files: bool,
}

/// A layer, and the file that it becomes.
#[derive(Debug, Clone)]
pub struct Item {
    pub blob: Descriptor,
    /// In the output folder; or anywhere, if that is allowed.
    pub path: PathBuf,
}

/// Where these layers go: under their titles, and those without under the names that a mount gives them.
///
/// # Errors
/// If a title leaves the output folder, or if two layers want one place.
pub fn items(mount: &Mount, layers: &[usize], options: &Options) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    for &number in layers {
        let blob = mount.blob_of_layer(number)?.clone();
        let Some(path) = path_of(mount, number, &blob, options)? else { continue };
        if let Some(other) = places.get(&path).and_then(|place| items.get(*place)) {
            if other.blob.digest != blob.digest {
                let cause = format!("two layers have this title: {} and {}", other.blob.digest, blob.digest);
                let hint = "pull them one by one, by digest, into two folders";
                return Err(Error::new(ErrorKind::Usage, path.display(), cause).hint(hint));
            }
            continue;
        }
        places.insert(path.clone(), items.len());
        items.push(Item { blob, path });
    }
    for path in items.iter().map(|item| &item.path) {
        if let Some(above) = path.ancestors().skip(1).find(|above| places.contains_key(*above)) {
            let cause = format!("one layer has this title, and another lies below it: {}", path.display());
            let hint = "pull them one by one, by digest, into two folders";
            return Err(Error::new(ErrorKind::Usage, above.display(), cause).hint(hint));
        }
    }
    Ok(items)
}

fn path_of(mount: &Mount, number: usize, blob: &Descriptor, options: &Options) -> Result<Option<PathBuf>> {
    let Some(title) = blob.title() else { return Ok(mount.path_of_layer(number).map(PathBuf::from)) };
    let part = mount.manifests().iter().find(|part| part.layers.contains(&number));
    let below: PathBuf = part.into_iter().flat_map(|part| &part.folder).collect();
    match folder::inside(Path::new(title)) {
        Some(path) => Ok(Some(below.join(path))),
        None if options.allow_path_traversal && Path::new(title).file_name().is_some() => Ok(Some(title.into())),
        None => {
            let cause = format!("the title of layer {} leads out of the output folder", blob.digest);
            let hint = "if you trust its publisher: --allow-path-traversal";
            Err(Error::new(ErrorKind::Denied, title, cause).hint(hint))
        }
    }
}

impl Item {
    /// Makes the folders on the way. Blocks on the disk.
    fn place(&self, options: &Options, output: &Folder) -> Result<Place> {
        let keep = options.keep_old_files;
        let failed = |error| folder::failed(&options.output.join(&self.path), &error);
        let (folder, name) = match folder::inside(&self.path) {
            Some(path) => output.to(&path).map_err(failed)?,
            None => {
                let path = options.output.join(&self.path);
                let above = path.parent().unwrap_or(Path::new("/"));
                (Folder::open(above).map_err(failed)?, path.file_name().unwrap_or(OsStr::new("")).to_owned())
            }
        };
        Ok(Place { folder, name, keep })
    }

    /// What there is of it already, without making anything. Blocks on the disk.
    pub fn look(&self, mount: &Mount, options: &Options) -> There {
        let nothing = || There { in_cache: mount.cached_bytes(&self.blob, &(0..self.blob.size)), ..There::default() };
        let path = options.output.join(&self.path);
        let found = match folder::inside(&self.path) {
            Some(inside) if options.output.is_dir() => {
                Folder::open(&options.output).and_then(|output| output.existing(&inside)).ok().flatten()
            }
            None => path
                .parent()
                .filter(|above| above.is_dir())
                .and_then(|above| Some((Folder::open(above).ok()?, path.file_name()?.to_owned()))),
            _ => None,
        };
        let place = found.map(|(folder, name)| Place { folder, name, keep: false });
        place.map_or_else(nothing, |place| place.look(mount, &self.blob))
    }
}

/// Fetches all, and goes on when one fails. `progress` is told of bytes that came, or were there.
pub async fn pull(
    mount: &Mount,
    items: &[Item],
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Failed>> {
    let open = || Folder::open(&options.output).map_err(|error| folder::failed(&options.output, &error));
    let output = tokio::task::block_in_place(open)?;
    let window = Semaphore::new(PIECES);
    // What two files have in common is fetched once: the second finds it in the cache.
    let mut groups: HashMap<&str, Vec<&Item>> = HashMap::new();
    let mut order = Vec::new();
    for item in items {
        let group = groups.entry(item.blob.digest.as_str()).or_default();
        if group.is_empty() {
            order.push(item.blob.digest.as_str());
        }
        group.push(item);
    }
    let groups = order.into_iter().filter_map(|digest| groups.remove(digest));
    let pulled = stream::iter(groups).map(async |group| {
        let mut failed = Vec::new();
        for item in group {
            let pulled = async {
                let place = tokio::task::block_in_place(|| item.place(options, &output))?;
                blob::fetch(mount, &item.blob, &place, &window, progress).await
            };
            if let Err(error) = pulled.await {
                failed.push(Failed { path: item.path.display().to_string(), error });
            }
        }
        failed
    });
    let failed: Vec<Vec<Failed>> = pulled.buffer_unordered(LAYERS).collect().await;
    mount.settle().await;
    Ok(failed.into_iter().flatten().collect())
}
