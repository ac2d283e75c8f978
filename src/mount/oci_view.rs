//! `.oci`: the artifact as an image layout (OCI image specification, image-layout.md), made of what the mount has anyway.
//!
//! What is attached, and manifests of an index that are not shown, are looked up when somebody first asks for them: one
//! look-up, which all who ask wait for; a failure is not remembered. After that nothing changes any more.

mod attached;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use serde_json::json;

use super::manifests::Resolved;
use super::repository::{Repository, typed};
use super::tree::{Node, NodeId, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest, Document, REF_NAME, Referrer};
pub use attached::Content;
use attached::{File, More, look_up};

pub const NAME: &str = ".oci";
/// The node that `referrers` gets in [`OciView::new`].
const REFERRERS: NodeId = 3;

pub struct OciView {
    repository: Repository,
    subject: Digest,
    /// All but what is attached.
    tree: Tree,
    files: Vec<File>,
    /// Manifests of an index that the mount does not show.
    hidden: Vec<Descriptor>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    more: Option<Arc<More>>,
    coming: Option<Shared<BoxFuture<'static, Result<Arc<More>>>>>,
}

/// Whatever a number stands for.
enum At {
    Own(NodeId),
    Attached(Arc<More>, NodeId),
    Blob(Arc<More>, usize),
}

impl OciView {
    /// `layers`: of all manifests.
    pub fn new<'a>(
        repository: Repository,
        tag: Option<&str>,
        parts: &[Resolved],
        layers: impl Iterator<Item = &'a Descriptor>,
    ) -> Result<Self> {
        let missing = || Error::new(ErrorKind::NotFound, NAME, "no manifest");
        let root = parts.first().ok_or_else(missing)?;
        let (entry, subject) = entry(root, tag)?;
        let index =
            json!({ "schemaVersion": 2, "mediaType": media_types::IMAGE_INDEX, "manifests": [entry] }).to_string();
        let mut files = vec![
            File::bytes(None, json!({ "imageLayoutVersion": "1.0.0" }).to_string().into()),
            File::bytes(None, index.into()),
        ];
        let mut known: HashSet<Digest> = HashSet::new();
        let mut add = |file: File| {
            if file.digest.as_ref().is_some_and(|digest| known.insert(digest.clone())) {
                files.push(file);
            }
        };
        let whole = || parts.iter().filter(|part| !part.bytes.is_empty());
        for part in whole() {
            add(File::bytes(Some(part.descriptor.digest.clone()), part.bytes.clone()));
        }
        for part in whole() {
            if let Some(config) = &part.manifest.config {
                add(File::bytes(Some(config.digest.clone()), part.config.clone()));
            }
        }
        layers.for_each(|layer| add(File::blob(layer)));
        let mut hidden: Vec<Descriptor> = Vec::new();
        for part in whole() {
            if let Ok(Document::Index(index)) = Document::parse(&part.bytes, part.descriptor.digest.as_str()) {
                hidden.extend(index.manifests.into_iter().map(|listed| listed.descriptor));
            }
        }
        hidden.retain(|manifest| known.insert(manifest.digest.clone()));
        files.extend(hidden.iter().map(|manifest| File { content: Content::Later, ..File::blob(manifest) }));

        let fixed = [("oci-layout", Node::Blob(0)), ("index.json", Node::Blob(1)), ("referrers", Node::Directory)];
        let fixed = fixed.into_iter().map(|(name, node)| (vec![name.to_owned()], node));
        let folder = (vec!["blobs".to_owned(), "sha256".to_owned()], Node::Directory);
        let blobs = files.iter().enumerate().filter_map(|(number, file)| {
            let digest = file.digest.as_ref()?;
            let place = ["blobs", digest.algorithm(), digest.hex()].map(str::to_owned);
            Some((place.to_vec(), Node::Blob(number)))
        });
        let tree = Tree::new(fixed.chain([folder]).chain(blobs));
        Ok(Self { repository, subject, tree, files, hidden, state: Mutex::default() })
    }

    /// `None`: there is no such name, and never will be.
    pub async fn child(&self, directory: u32, name: &[u8]) -> Result<Option<u32>> {
        match self.at(directory)? {
            At::Own(REFERRERS) => {
                let more = self.more().await?;
                Ok(more.tree.child(0, name).map(|id| self.number(id)))
            }
            At::Own(id) => {
                if let Some(child) = self.tree.child(id, name) {
                    return Ok(Some(child as u32));
                }
                // The blobs of what is attached.
                let Some(digest) = self.digest(id, name) else { return Ok(None) };
                let more = self.more().await?;
                Ok(more.blobs.get(&digest).map(|file| self.number(more.tree.len().saturating_add(*file))))
            }
            At::Attached(more, id) => Ok(more.tree.child(id, name).map(|id| self.number(id))),
            At::Blob(..) => Ok(None),
        }
    }

    /// Calls `visit` for the names from `first` on until it returns false.
    pub async fn list(
        &self,
        directory: u32,
        first: usize,
        mut visit: impl FnMut(&str, u32) -> Result<bool> + Send,
    ) -> Result<()> {
        let more;
        let (children, attached) = match self.at(directory)? {
            At::Own(REFERRERS) => {
                more = self.more().await?;
                (more.tree.children(0), true)
            }
            At::Own(id) => (self.tree.children(id), false),
            At::Attached(known, id) => {
                more = known;
                (more.tree.children(id), true)
            }
            At::Blob(..) => (&[] as &[_], false),
        };
        for (name, id) in children.get(first..).unwrap_or_default() {
            let number = if attached { self.number(*id) } else { *id as u32 };
            if !visit(name, number)? {
                break;
            }
        }
        Ok(())
    }

    /// `None`: the mount's root.
    pub fn parent(&self, number: u32) -> Result<Option<u32>> {
        Ok(match self.at(number)? {
            At::Own(0) => None,
            At::Own(id) => Some(self.tree.parent(id) as u32),
            At::Attached(more, id) => Some(match more.tree.parent(id) {
                0 => REFERRERS as u32,
                parent => self.number(parent),
            }),
            At::Blob(..) => self.tree.child(0, b"blobs").map(|id| id as u32),
        })
    }

    /// Bytes of a file; `None` for a directory.
    pub fn size(&self, number: u32) -> Result<Option<u64>> {
        self.with_file(number, |file| file.size)
    }

    pub async fn content(&self, number: u32) -> Result<Content> {
        let found = self.with_file(number, |file| (file.content.clone(), file.digest.clone()))?;
        match found.ok_or_else(|| Error::new(ErrorKind::Unsupported, "read", "a directory has no bytes"))? {
            (Content::Later, Some(digest)) => {
                let more = self.more().await?;
                let file = more.blobs.get(&digest).and_then(|file| more.files.get(*file));
                file.map(|file| file.content.clone()).ok_or_else(|| unknown(number))
            }
            (content, _) => Ok(content),
        }
    }

    /// The blob that a file is, if it is one.
    pub fn blob(&self, number: u32) -> Result<Option<Descriptor>> {
        let blob = self.with_file(number, |file| match &file.content {
            Content::Blob(descriptor) => Some(descriptor.clone()),
            _ => None,
        })?;
        Ok(blob.flatten())
    }

    /// All that show bytes of this blob.
    pub fn numbers_of(&self, digest: &Digest) -> Vec<u32> {
        let more = self.state().more.clone();
        let more = more.map_or(0, |more| more.tree.len().saturating_add(more.files.len()));
        let all = 0..u32::try_from(self.tree.len().saturating_add(more)).unwrap_or(u32::MAX);
        let is_it = |number: &u32| {
            matches!(self.with_file(*number, |file| file.digest.as_ref() == Some(digest)), Ok(Some(true)))
        };
        all.filter(is_it).collect()
    }

    fn with_file<T>(&self, number: u32, read: impl FnOnce(&File) -> T) -> Result<Option<T>> {
        let of_node = |tree: &Tree, id| match tree.node(id) {
            Some(Node::Blob(file)) => Ok(Some(file)),
            Some(_) => Ok(None),
            None => Err(unknown(number)),
        };
        let at = self.at(number)?;
        let (files, file) = match &at {
            At::Own(id) => (&self.files, of_node(&self.tree, *id)?),
            At::Attached(more, id) => (&more.files, of_node(&more.tree, *id)?),
            At::Blob(more, file) => (&more.files, Some(*file)),
        };
        let Some(file) = file else { return Ok(None) };
        Ok(Some(read(files.get(file).ok_or_else(|| unknown(number))?)))
    }

    fn number(&self, more: usize) -> u32 {
        u32::try_from(self.tree.len().saturating_add(more)).unwrap_or(u32::MAX)
    }

    fn at(&self, number: u32) -> Result<At> {
        let Some(id) = (number as usize).checked_sub(self.tree.len()) else { return Ok(At::Own(number as usize)) };
        let more = self.state().more.clone().ok_or_else(|| unknown(number))?;
        Ok(match id.checked_sub(more.tree.len()) {
            None => At::Attached(more, id),
            Some(file) => At::Blob(more, file),
        })
    }

    /// That a name in this directory stands for.
    fn digest(&self, directory: NodeId, name: &[u8]) -> Option<Digest> {
        let blobs = self.tree.child(0, b"blobs")?;
        let (algorithm, _) = self.tree.children(blobs).iter().find(|(_, id)| *id == directory)?;
        format!("{algorithm}:{}", std::str::from_utf8(name).ok()?).parse().ok()
    }

    async fn more(&self) -> Result<Arc<More>> {
        let coming = {
            let mut state = self.state();
            if let Some(more) = &state.more {
                return Ok(Arc::clone(more));
            }
            state.coming.get_or_insert_with(|| self.look_up()).clone()
        };
        let result = coming.clone().await;
        let mut state = self.state();
        if state.coming.as_ref().is_some_and(|own| own.ptr_eq(&coming)) {
            state.coming = None;
            state.more = state.more.take().or_else(|| result.as_ref().ok().cloned());
        }
        result
    }

    /// Goes on if all who wait give up.
    fn look_up(&self) -> Shared<BoxFuture<'static, Result<Arc<More>>>> {
        let (repository, subject, hidden) = (self.repository.clone(), self.subject.clone(), self.hidden.clone());
        let sizes = self.files.iter().filter_map(|file| Some((file.digest.clone()?, file.size))).collect();
        let task = tokio::spawn(async move { look_up(&repository, &subject, hidden, sizes).await.map(Arc::new) });
        task.map(|done| done.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, NAME, panic)))).boxed().shared()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(number: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("{NAME} {number}"), "no such inode")
}

/// The root in `index.json`, and its digest.
fn entry(root: &Resolved, tag: Option<&str>) -> Result<(serde_json::Value, Digest)> {
    let mut root_entry = Referrer {
        descriptor: typed(root.descriptor.digest.clone(), &root.bytes)?,
        artifact_type: root.artifact_type.clone().unwrap_or_default(),
    };
    root_entry.descriptor.annotations.extend(tag.map(|tag| (REF_NAME.to_owned(), tag.to_owned())));
    Ok((root_entry.to_json(), root_entry.descriptor.digest))
}
