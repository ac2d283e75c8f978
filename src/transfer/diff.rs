//! What differs between two artifacts: layers by their names and digests, and what is in layers that differ.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Ino, Kind, Mount};
use crate::oci::{Descriptor, Digest, Hasher};

/// Bytes of a member that are read at once.
const PIECE: u32 = 1 << 20;

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    Layers,
    /// What is in layers that differ, without its content.
    Members,
    /// And the content of members that have the same size in both.
    Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerChange {
    /// Title, or the name that a mount gives it.
    pub name: String,
    pub change: Change,
    pub old: Option<Descriptor>,
    pub new: Option<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChange {
    pub path: Vec<u8>,
    pub change: Change,
    pub old: Option<Member>,
    pub new: Option<Member>,
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub kind: Kind,
    /// 0 of folders.
    pub size: u64,
    pub mtime: SystemTime,
    pub mode: u16,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    /// Of the content, where that is known: of a layer that is a file, or was read to be compared.
    pub digest: Option<Digest>,
}

#[derive(Debug, Default)]
pub struct Difference {
    /// Layers that are the same.
    pub same: usize,
    pub layers: Vec<LayerChange>,
    pub members: Vec<MemberChange>,
    pub configs_differ: bool,
}

impl Difference {
    pub fn is_none(&self) -> bool {
        self.layers.is_empty() && !self.configs_differ
    }
}

/// Layers that are in both under one name, and differ, are looked into as deep as that.
pub async fn compare(old: &Mount, new: &Mount, depth: Depth) -> Result<Difference> {
    let config = |mount: &Mount| {
        let configs = mount.manifests().iter().filter_map(|part| part.manifest.config.as_ref());
        configs.map(|config| config.digest.clone()).collect::<Vec<_>>()
    };
    let mut difference = Difference { configs_differ: config(old) != config(new), ..Difference::default() };
    let (before, after) = (layers(old)?, layers(new)?);
    for (name, change, old_number, new_number) in changes(&before, &after) {
        let of = |mount: &Mount, number: Option<&usize>| number.map(|number| mount.blob_of_layer(*number).cloned());
        let (old_blob, new_blob) = (of(old, old_number).transpose()?, of(new, new_number).transpose()?);
        if old_blob.as_ref().map(|blob| &blob.digest) == new_blob.as_ref().map(|blob| &blob.digest) {
            difference.same = difference.same.saturating_add(1);
            continue;
        }
        if let (true, Some(old_number), Some(new_number)) = (depth > Depth::Layers, old_number, new_number) {
            let places = old.path_of_layer(*old_number).zip(new.path_of_layer(*new_number));
            if let Some((old_path, new_path)) = places {
                let (mut before, mut after) =
                    (tree(old, &old_path, *old_number).await?, tree(new, &new_path, *new_number).await?);
                if depth == Depth::Content {
                    read_same_sized((old, &old_path, &mut before), (new, &new_path, &mut after)).await?;
                }
                let member = |found: Option<&(Ino, Member)>| found.map(|(_, member)| member.clone());
                let changed =
                    changes(&before, &after).map(|(path, change, old, new)| (path, change, member(old), member(new)));
                difference.members.extend(changed.filter(|(_, _, old, new)| old != new).map(
                    |(path, change, old, new)| {
                        let path = if path.is_empty() {
                            new_path.clone().into()
                        } else {
                            [new_path.as_bytes(), b"/", path].concat()
                        };
                        MemberChange { path, change, old, new }
                    },
                ));
            }
        }
        difference.layers.push(LayerChange { name: name.clone(), change, old: old_blob, new: new_blob });
    }
    Ok(difference)
}

/// All keys of both, in order, with what each has.
fn changes<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Change, Option<&'a V>, Option<&'a V>)> {
    let keys: std::collections::BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter().map(|key| match (old.get(key), new.get(key)) {
        (None, new) => (key, Change::Added, None, new),
        (old, None) => (key, Change::Removed, old, None),
        (old, new) => (key, Change::Changed, old, new),
    })
}

fn layers(mount: &Mount) -> Result<BTreeMap<String, usize>> {
    let mut layers = BTreeMap::new();
    for number in 0..mount.layer_count() {
        let blob = mount.blob_of_layer(number)?;
        let part = mount.manifests().iter().find(|part| part.layers.contains(&number));
        let folder = part.map(|part| part.folder.join("/")).filter(|folder| !folder.is_empty());
        let title = blob.title().map(|title| folder.map_or(title.to_owned(), |folder| format!("{folder}/{title}")));
        let name = title.or_else(|| mount.path_of_layer(number)).unwrap_or_else(|| blob.digest.to_string());
        // Of several under one name each counts.
        let name = if layers.contains_key(&name) { format!("{name} {}", blob.digest) } else { name };
        layers.insert(name, number);
    }
    Ok(layers)
}

type Tree = BTreeMap<Vec<u8>, (Ino, Member)>;

/// All below a layer, by path; itself alone where it is no archive.
async fn tree(mount: &Mount, path: &str, layer: usize) -> Result<Tree> {
    let top = mount.resolve(path.as_bytes()).await?;
    let mut members = BTreeMap::new();
    let mut waiting: Vec<(Ino, Vec<u8>)> = vec![(top.ino, Vec::new())];
    while let Some((ino, path)) = waiting.pop() {
        let found = mount.attributes(ino).await?;
        let is_top = ino == top.ino;
        if found.kind == Kind::Directory {
            for (name, ino, _) in mount.children(ino).await? {
                waiting.push((ino, if is_top { name } else { [&path, &b"/"[..], &name].concat() }));
            }
            if is_top {
                continue;
            }
        }
        let target = if found.kind == Kind::Symlink { mount.read_link(ino).await? } else { Vec::new() };
        let mode = mount.archived_mode(ino).await?.unwrap_or(found.mode);
        let digest = is_top.then(|| mount.blob_of_layer(layer).map(|blob| blob.digest.clone())).transpose()?;
        let member = Member { kind: found.kind, size: found.size, mtime: found.mtime, mode, target, digest };
        members.insert(path, (ino, member));
    }
    Ok(members)
}

/// Those of different sizes differ in any case.
async fn read_same_sized(
    (old, old_path, before): (&Mount, &str, &mut Tree),
    (new, new_path, after): (&Mount, &str, &mut Tree),
) -> Result<()> {
    let is_file = |member: &Member| member.kind == Kind::File && member.digest.is_none();
    let mut both = Vec::new();
    for (path, (ino, old)) in before {
        let Some((new_ino, new)) = after.get_mut(path) else { continue };
        if is_file(old) && is_file(new) && old.size == new.size {
            both.push((*ino, old, *new_ino, path));
        }
    }
    // In the order of the archive, which is read as one stream.
    both.sort_by_key(|(ino, ..)| *ino);
    for (ino, old_member, new_ino, path) in both {
        let size = old_member.size;
        let (was, is) =
            tokio::try_join!(digest_of(old, ino, size, old_path, path), digest_of(new, new_ino, size, new_path, path))?;
        old_member.digest = Some(was);
        if let Some((_, new_member)) = after.get_mut(path) {
            new_member.digest = Some(is);
        }
    }
    Ok(())
}

/// `path`: below that of its layer.
async fn digest_of(mount: &Mount, file: Ino, size: u64, layer: &str, path: &[u8]) -> Result<Digest> {
    let (mut hasher, mut at) = (Hasher::sha256(), 0_u64);
    while at < size {
        let bytes = mount.read(file, at, PIECE).await?;
        if bytes.is_empty() {
            let object = format!("{layer}/{}", String::from_utf8_lossy(path));
            let error = Error::new(ErrorKind::Corrupt, object, format!("ends at byte {at} of {size}"));
            return Err(error.hint("the index of its layer may be wrong: try --no-index, or `eo-mount cache clear`"));
        }
        hasher.update(&bytes);
        at = at.saturating_add(bytes.len() as u64);
    }
    Ok(hasher.finish())
}
