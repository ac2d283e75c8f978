//! Which layers and files the paths and globs of a verb name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobMatcher};

use super::manifests::Resolved;
use super::tree::Node;
use super::{Ino, Kind, Mount, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, LayerIndex};

/// What was chosen of each layer, by its number.
#[derive(Default)]
pub struct Selection {
    pub(super) layers: BTreeMap<usize, Chosen>,
    /// What could not be looked into.
    pub(super) failed: Vec<Failed>,
}

pub(super) enum Chosen {
    Whole,
    Files(Vec<EntryId>),
}

/// A file or layer, and why it could not be had.
#[derive(Debug, Clone)]
pub struct Failed {
    pub path: String,
    pub error: Error,
}

/// Something in the tree of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Below the root, without a slash before it.
    pub path: Vec<u8>,
    pub ino: Ino,
    pub kind: Kind,
}

/// A path with wildcards, part by part: so that a walk need not go where nothing can be.
struct Pattern(Vec<Part>);

enum Part {
    /// `**`: any number of directories, none included.
    Any,
    Glob(GlobMatcher),
}

/// Parts of a pattern that may come next; its length stands for a match.
type Positions = Vec<usize>;

impl Pattern {
    fn parse(text: &str) -> Result<Self> {
        let parts = text.split('/').filter(|part| !matches!(*part, "" | ".")).map(|part| match part {
            "**" => Ok(Part::Any),
            part => {
                let glob = GlobBuilder::new(part).backslash_escape(true).build();
                let wrong = |error: globset::Error| Error::new(ErrorKind::Usage, text, error.kind());
                Ok(Part::Glob(glob.map_err(wrong)?.compile_matcher()))
            }
        });
        Ok(Self(parts.collect::<Result<_>>()?))
    }

    fn start(&self) -> Positions {
        self.with_skipped(vec![0])
    }

    /// Where a walk stands that enters `name`; nowhere if nothing can be there.
    fn enter(&self, positions: &[usize], name: &[u8]) -> Positions {
        let next = positions.iter().filter_map(|&at| match self.0.get(at)? {
            Part::Any => Some(at),
            Part::Glob(glob) => glob.is_match(OsStr::from_bytes(name)).then_some(at + 1),
        });
        self.with_skipped(next.collect())
    }

    fn with_skipped(&self, mut positions: Positions) -> Positions {
        let mut place = 0;
        while let Some(&at) = positions.get(place) {
            if matches!(self.0.get(at), Some(Part::Any)) && !positions.contains(&(at + 1)) {
                positions.push(at + 1);
            }
            place += 1;
        }
        positions
    }

    fn is_match(&self, positions: &[usize]) -> bool {
        positions.contains(&self.0.len())
    }
}

impl Mount {
    /// Everything.
    pub fn select_all(&self) -> Selection {
        let layers = (0..self.layers.len()).map(|number| (number, Chosen::Whole)).collect();
        let missing = |part: &Resolved| Some(Failed { path: part.folder.join("/"), error: part.error.clone()? });
        Selection { layers, failed: self.manifests.iter().filter_map(missing).collect() }
    }

    /// Files, folders with all that is below, layers by name or digest, and globs over the paths of the mount. A layer
    /// that cannot be looked into is noted.
    ///
    /// # Errors
    /// If one of them names nothing.
    pub async fn select(&self, wanted: &[Vec<u8>]) -> Result<Selection> {
        let mut selection = Selection::default();
        for wanted in wanted {
            // Links are followed.
            match self.resolve(&[wanted, &b"/."[..]].concat()).await {
                Ok(found) => {
                    let path = String::from_utf8_lossy(wanted);
                    self.take(found.ino, path.trim_matches('/'), &mut selection).await;
                }
                Err(error) if error.kind == ErrorKind::NotFound => {
                    let text = std::str::from_utf8(wanted).unwrap_or_default();
                    if let Some(number) = self.layers.iter().position(|layer| {
                        let digest = &layer.descriptor.digest;
                        [digest.as_str(), digest.short()].contains(&text)
                    }) {
                        selection.layers.insert(number, Chosen::Whole);
                    } else if text.contains(['*', '?', '[', '{']) {
                        self.take_matches(text, &mut selection).await?;
                    } else {
                        return Err(Error { object: String::from_utf8_lossy(wanted).into_owned(), ..error });
                    }
                }
                Err(error) => selection.fail(&String::from_utf8_lossy(wanted), error),
            }
        }
        Ok(selection)
    }

    async fn take_matches(&self, text: &str, selection: &mut Selection) -> Result<()> {
        for found in self.matches(text, &mut selection.failed).await? {
            if found.kind != Kind::Symlink {
                self.take(found.ino, &String::from_utf8_lossy(&found.path), selection).await;
            }
        }
        Ok(())
    }

    /// What a path, the digest of a layer or a glob over paths names: at least one place. What cannot be looked into on
    /// the way is noted.
    pub async fn find(&self, wanted: &[u8], failed: &mut Vec<Failed>) -> Result<Vec<Found>> {
        let missing = match self.resolve(wanted).await {
            Ok(found) => {
                let path = wanted.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
                let path = path.collect::<Vec<_>>().join(&b'/');
                return Ok(vec![Found { path, ino: found.ino, kind: found.kind }]);
            }
            Err(error) if error.kind == ErrorKind::NotFound => error,
            Err(error) => return Err(error),
        };
        match std::str::from_utf8(wanted) {
            Ok(text) if text.contains(['*', '?', '[', '{']) => self.matches(text, failed).await,
            _ => Err(missing),
        }
    }

    async fn matches(&self, text: &str, failed: &mut Vec<Failed>) -> Result<Vec<Found>> {
        let pattern = Pattern::parse(text)?;
        let root = Found { path: Vec::new(), ino: Ino::ROOT, kind: Kind::Directory };
        let mut waiting = vec![(root, pattern.start())];
        let (mut found, mut broken) = (Vec::new(), false);
        while let Some((place, positions)) = waiting.pop() {
            if pattern.is_match(&positions) {
                found.push(place);
                continue;
            }
            let children = match self.children(place.ino).await {
                Ok(children) => children,
                Err(error) => {
                    broken = true;
                    failed.push(Failed { path: String::from_utf8_lossy(&place.path).into_owned(), error });
                    continue;
                }
            };
            for (name, ino, kind) in children.into_iter().rev() {
                let positions = pattern.enter(&positions, &name);
                if pattern.is_match(&positions) || (kind == Kind::Directory && !positions.is_empty()) {
                    let path = if place.path.is_empty() { name } else { [&place.path, &b"/"[..], &name].concat() };
                    waiting.push((Found { path, ino, kind }, positions));
                }
            }
        }
        match found.is_empty() && !broken {
            true => Err(Error::new(ErrorKind::NotFound, text, "nothing in the dataset matches")),
            false => Ok(found),
        }
    }

    /// A file, or a directory with all that is below.
    async fn take(&self, top: Ino, path: &str, selection: &mut Selection) {
        let mut waiting = vec![(top, path.to_owned())];
        while let Some((ino, path)) = waiting.pop() {
            match self.place(ino) {
                Ok(Place::Entry { layer, entry: LayerIndex::ROOT }) => selection.whole(layer),
                Ok(Place::Node(id)) if matches!(self.tree.node(id), Some(Node::LayerFile(_))) => {
                    if let Some(Node::LayerFile(layer)) = self.tree.node(id) {
                        selection.whole(layer);
                    }
                }
                Ok(Place::Oci(_)) => {
                    let error = Error::new(ErrorKind::Unsupported, &path, "it is not fetched ahead");
                    selection.fail(&path, error.hint("name the layers as the mount shows them"));
                }
                // A mount has read it already.
                Ok(Place::Node(id)) if matches!(self.tree.node(id), Some(Node::Config(_))) => {}
                Ok(Place::Entry { layer, entry }) if self.is_file(layer, entry).await => selection.file(layer, entry),
                _ => match self.children(ino).await {
                    Ok(children) => waiting.extend(children.into_iter().filter_map(|(name, ino, kind)| {
                        let has_bytes = matches!(kind, Kind::File | Kind::Directory);
                        has_bytes.then(|| (ino, joined(&path, &name)))
                    })),
                    Err(error) => selection.fail(&path, error),
                },
            }
        }
    }

    async fn is_file(&self, layer: usize, entry: EntryId) -> bool {
        let contents = self.contents(layer).await.ok();
        contents.and_then(|contents| contents.index.entry(entry)).is_some_and(|entry| entry.kind == Kind::File)
    }

    /// Names, inodes and kinds, sorted, however long indexing takes.
    pub async fn children(&self, directory: Ino) -> Result<Vec<(Vec<u8>, Ino, Kind)>> {
        self.indexed(directory).await?;
        let mut children = Vec::new();
        self.list(directory, 2, |listed| {
            children.push((listed.name.to_vec(), listed.attributes.ino, listed.attributes.kind));
            true
        })
        .await?;
        Ok(children)
    }
}

impl Selection {
    fn whole(&mut self, layer: usize) {
        self.layers.insert(layer, Chosen::Whole);
    }

    fn file(&mut self, layer: usize, entry: EntryId) {
        if let Chosen::Files(files) = self.layers.entry(layer).or_insert_with(|| Chosen::Files(Vec::new())) {
            files.push(entry);
        }
    }

    fn fail(&mut self, path: &str, error: Error) {
        self.failed.push(Failed { path: path.to_owned(), error });
    }
}

pub(super) fn joined(path: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::parse(pattern).unwrap();
        let positions = path.split('/').fold(pattern.start(), |at, name| pattern.enter(&at, name.as_bytes()));
        pattern.is_match(&positions)
    }

    #[test]
    fn wildcards_stop_at_slashes_and_two_stars_do_not() {
        for (pattern, path) in [
            ("*/DATA_S2/*.npy", "10000/DATA_S2/S2_10000.npy"),
            ("**/*.npy", "10000/DATA_S2/S2_10000.npy"),
            ("**/*.npy", "a.npy"),
            ("100[01]0/**", "10010/a/b"),
            ("./1000?//*", "10001/x"),
            ("{a,b}/c", "b/c"),
            ("a/**/d", "a/d"),
            ("a/**/d", "a/b/c/d"),
            (r"a\*", "a*"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("*.npy", "a/b.npy"), ("**/*.npy", "a/b.tif"), ("a/**/d", "a/b/c"), (r"a\*", "ab"), ("a*", "A")]
        {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        assert!(Pattern::parse("a[").is_err());
    }

    #[test]
    fn a_walk_enters_only_where_something_can_be() {
        let pattern = Pattern::parse("1000?/DATA_S2/*").unwrap();
        assert!(pattern.enter(&pattern.start(), b"10010").is_empty());
        let inside = pattern.enter(&pattern.start(), b"10001");
        assert!(!inside.is_empty() && pattern.enter(&inside, b"DATA_S1A").is_empty());
    }
}
