//! Layers into files: which, where to, and all of them at once.

mod chosen;
mod done;
mod layout;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, stream};
use tokio::task::block_in_place;

pub use chosen::{Chosen, choose};
use done::Done;
pub use layout::{artifact, look as look_in_layout, to_layout};

use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Attributes, Failed, Found, Kind, Mount, is_path};
use crate::oci::{Descriptor, UNPACK};
use crate::transfer::extract::Extraction;
pub use crate::transfer::fetch::There;
use crate::transfer::fetch::{Lanes, Origin, Place, fetch};
use crate::transfer::folder::{self, Alone, Folder};

/// How names of files begin that are there for the next call.
const OWN: &str = ".eo-mount-";

#[derive(Debug, Clone)]
pub struct Options {
    pub output: PathBuf,
    /// Titles may lead out of `output`.
    pub allow_path_traversal: bool,
    /// A file that is there stays, and is an error if it is another.
    pub keep_old_files: bool,
    /// Archives become what is in them.
    pub extract: bool,
    /// Device nodes are made, too.
    pub devices: bool,
}

/// A layer, and the file or tree that it becomes.
#[derive(Debug, Clone)]
pub struct Item {
    pub blob: Descriptor,
    /// In the output folder; or anywhere, if that is allowed.
    pub path: PathBuf,
    /// What goes there in place of the blob.
    pub tree: Option<Attributes>,
}

/// Where these layers go: under their titles, and those without one that can name a file under the names that a mount
/// gives them, as do all that are extracted.
///
/// # Errors
/// If a title leaves the output folder or is one of our own names, or if two layers want one place.
pub async fn items(mount: &Mount, layers: &[usize], options: &Options) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    for &number in layers {
        let blob = mount.blob_of_layer(number)?.clone();
        let Some((path, tree)) = place_of(mount, number, &blob, options).await? else { continue };
        if path.iter().any(|name| name.as_bytes().starts_with(OWN.as_bytes())) {
            let cause = format!("the title of layer {} is a name of files that this program keeps there", blob.digest);
            let hint = "name the layers that are wanted, or fetch this one by its digest: oras blob fetch";
            return Err(Error::new(ErrorKind::Denied, path.display(), cause).hint(hint));
        }
        if let Some(other) = places.get(&path).and_then(|place| items.get(*place)) {
            if other.blob.digest != blob.digest {
                let cause = format!("two layers have this title: {} and {}", other.blob.digest, blob.digest);
                let hint = "pull them one by one, by digest, into two folders";
                return Err(Error::new(ErrorKind::Usage, path.display(), cause).hint(hint));
            }
            continue;
        }
        places.insert(path.clone(), items.len());
        items.push(Item { blob, path, tree });
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

/// And the tree that is to be there, where an archive is extracted: also one that oras made of a folder, as oras does.
async fn place_of(
    mount: &Mount,
    number: usize,
    blob: &Descriptor,
    options: &Options,
) -> Result<Option<(PathBuf, Option<Attributes>)>> {
    let folder = blob.annotations.get(UNPACK).is_some_and(|value| value == "true");
    if !options.extract && !folder {
        return Ok(path_of(mount, number, blob, options)?.map(|path| (path, None)));
    }
    let Some(shown) = mount.path_of_layer(number) else { return Ok(None) };
    let top = mount.resolve(shown.as_bytes()).await?;
    let tree = Some(top).filter(|top| top.kind == Kind::Directory);
    if options.extract {
        return Ok(Some((shown.into(), tree)));
    }
    // Its members' names begin with the title.
    let Some(path) = path_of(mount, number, blob, options)? else { return Ok(None) };
    let inside = mount.resolve(format!("{shown}/{}", blob.title().unwrap_or_default()).as_bytes()).await;
    Ok(Some((path, inside.ok().filter(|inside| inside.kind == Kind::Directory).or(tree))))
}

fn path_of(mount: &Mount, number: usize, blob: &Descriptor, options: &Options) -> Result<Option<PathBuf>> {
    let Some(title) = blob.title().filter(|title| is_path(title)) else {
        return Ok(mount.path_of_layer(number).map(PathBuf::from));
    };
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
        if self.tree.is_some() {
            return Ok(Place { folder: output.clone(), name: self.archive(), keep: false });
        }
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

    /// Where the layer lies until its tree is made.
    fn archive(&self) -> OsString {
        format!(".eo-mount-{}.layer", self.blob.digest.hex()).into()
    }

    /// What there is of it already, without making anything. Blocks on the disk.
    pub fn look(&self, mount: &Mount, options: &Options) -> There {
        let nothing = || There { in_cache: mount.cached_bytes(&self.blob, &(0..self.blob.size)), ..There::default() };
        if self.tree.is_some() && Done::read(&options.output).has(self) {
            return There { in_folder: self.blob.size, in_cache: 0, finished: true };
        }
        let inside = self.tree.map_or_else(|| self.path.clone(), |_| self.archive().into());
        let path = options.output.join(&inside);
        let found = match folder::inside(&inside) {
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
    items: &[&Item],
    members: &[Found],
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Failed>> {
    let open = || Folder::open(&options.output).map_err(|error| folder::failed(&options.output, &error));
    let output = block_in_place(open)?;
    let done = Mutex::new(block_in_place(|| Done::read(&options.output)));
    // What two files have in common is fetched once: the second finds it in the cache.
    let mut groups: HashMap<&str, Vec<&Item>> = HashMap::new();
    let mut order = Vec::new();
    for &item in items {
        let group = groups.entry(item.blob.digest.as_str()).or_default();
        if group.is_empty() {
            order.push(item.blob.digest.as_str());
        }
        group.push(item);
    }
    let (lanes, _memory) = (Lanes::of(groups.len()), mount.read_once());
    let pulling = Pulling { mount, options, output: &output, lanes: &lanes, done: &done, progress };
    let groups = order.into_iter().filter_map(|digest| groups.remove(digest));
    let pulled = stream::iter(groups).map(async |group| {
        let mut failed = Vec::new();
        for item in group {
            if let Err(error) = pulling.item(item).await {
                failed.push(Failed { path: item.path.display().to_string(), error });
            }
        }
        failed
    });
    let failed: Vec<Vec<Failed>> = pulled.buffer_unordered(lanes.blobs()).collect().await;
    let mut failed: Vec<Failed> = failed.into_iter().flatten().collect();
    for member in members {
        if let Err(error) = pulling.member(member).await {
            failed.push(Failed { path: String::from_utf8_lossy(&member.path).into_owned(), error });
        }
    }
    mount.settle().await;
    if failed.is_empty() {
        block_in_place(|| Done::clear(&output)).map_err(|error| folder::failed(&options.output, &error))?;
    }
    Ok(failed)
}

/// The archive, locked as long as it is held. `None`: another process has made its tree and taken it away.
async fn alone_with(place: &Place) -> io::Result<Option<Alone>> {
    let archive = match place.folder.file(&place.name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        archive => archive?,
    };
    let alone = Alone::with(archive.into()).await?;
    Ok((!alone.is_gone()?).then_some(alone))
}

struct Pulling<'a> {
    mount: &'a Mount,
    options: &'a Options,
    output: &'a Folder,
    lanes: &'a Lanes,
    done: &'a Mutex<Done>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Pulling<'_> {
    async fn item(&self, item: &Item) -> Result<()> {
        let Self { mount, options, output, lanes, progress, .. } = self;
        let place = block_in_place(|| item.place(options, output))?;
        let failed = |error: io::Error| folder::failed(&place.path(), &error);
        if item.tree.is_some() && self.done().has(item) {
            progress(item.blob.size);
            // Whoever made the tree may have been killed just then.
            return block_in_place(|| place.folder.remove(&place.name)).map_err(failed);
        }
        let source = mount.blobs();
        let origin = Origin { source: &*source, mount: Some(mount) };
        fetch(origin, &item.blob, &place, lanes, progress).await?;
        let Some(tree) = item.tree else { return Ok(()) };
        let Some(_alone) = alone_with(&place).await.map_err(failed)? else { return Ok(()) };
        mount.local().add(&item.blob.digest, place.folder.file(&place.name).map_err(failed)?);
        let extracted = self.extraction(&|_| ()).extract(tree, &item.path).await;
        mount.local().remove(&item.blob.digest);
        extracted.map_err(|error| match error.hint {
            Some(_) => error,
            None => error.hint("the layer's bytes are right: have it as it is with `oras blob fetch`"),
        })?;
        self.done().add(output, item).map_err(failed)?;
        block_in_place(|| place.folder.remove(&place.name)).map_err(failed)
    }

    async fn member(&self, member: &Found) -> Result<()> {
        let attributes = self.mount.attributes(member.ino).await?;
        self.extraction(self.progress).extract(attributes, Path::new(OsStr::from_bytes(&member.path))).await
    }

    fn extraction<'b>(&'b self, progress: &'b (dyn Fn(u64) + Sync)) -> Extraction<'b> {
        Extraction::new(self.mount, self.output.clone(), self.options.keep_old_files, self.options.devices, progress)
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
