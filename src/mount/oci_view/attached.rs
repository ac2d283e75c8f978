//! The files of `.oci`, and those of them that are looked up: what is attached, and manifests that the mount does not show.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::super::manifests::{AT_ONCE, ManifestLimits, sized};
use super::super::names::{Parts, Shape, file_name, places};
use super::super::repository::Repository;
use super::super::tree::{Node, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, Manifest};

/// What was looked up. Its nodes have the numbers behind those of the view, the blobs those behind them.
pub struct More {
    /// What is in `referrers`.
    pub tree: Tree,
    pub files: Vec<File>,
    /// Files by digest.
    pub blobs: HashMap<Digest, usize>,
}

pub struct File {
    pub digest: Option<Digest>,
    pub size: u64,
    pub content: Content,
}

#[derive(Clone)]
pub enum Content {
    Bytes(Bytes),
    Blob(Descriptor),
    /// Looked up with what is attached.
    Later,
    Broken(Error),
}

impl File {
    pub fn bytes(digest: Option<Digest>, bytes: Bytes) -> Self {
        Self { digest, size: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    pub fn blob(descriptor: &Descriptor) -> Self {
        Self {
            digest: Some(descriptor.digest.clone()),
            size: descriptor.size,
            content: Content::Blob(descriptor.clone()),
        }
    }
}

/// `sizes`: of blobs that are known already.
pub async fn look_up(
    repository: &Repository,
    subject: &Digest,
    hidden: Vec<Descriptor>,
    sizes: HashMap<Digest, u64>,
) -> Result<More> {
    let limits = ManifestLimits::default();
    let referrers = repository.referrers(subject, None).await?;
    let mut room = limits.bytes;
    let fits = |descriptor: &Descriptor| {
        room = room.saturating_sub(descriptor.size);
        room > 0
    };
    let types: HashMap<Digest, String> = referrers
        .iter()
        .map(|referrer| (referrer.descriptor.digest.clone(), folder(&referrer.artifact_type)))
        .collect();
    let count = hidden.len().saturating_add(referrers.len());
    let descriptors = hidden.into_iter().chain(referrers.into_iter().map(|referrer| referrer.descriptor));
    let wanted: Vec<Descriptor> = descriptors.take_while(fits).take(limits.manifests).collect();
    if wanted.len() < count {
        tracing::warn!("{subject}: more is attached than is shown: {} of {count} manifests", wanted.len());
    }
    let fetched: Vec<_> = stream::iter(wanted)
        .map(async |wanted| {
            let bytes = repository.manifest(&wanted).await.and_then(|bytes| sized(bytes, &wanted));
            (wanted, bytes)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut gathered = Gathered { sizes, files: Vec::new(), blobs: HashMap::new(), nodes: Vec::new() };
    for (manifest, bytes) in fetched {
        match bytes {
            Err(error) if error.is_of_the_network() => return Err(error),
            bytes => gathered.add(&manifest, types.get(&manifest.digest), bytes),
        }
    }
    Ok(More { tree: Tree::new(gathered.nodes), files: gathered.files, blobs: gathered.blobs })
}

struct Gathered {
    sizes: HashMap<Digest, u64>,
    files: Vec<File>,
    blobs: HashMap<Digest, usize>,
    nodes: Vec<(Parts, Node)>,
}

impl Gathered {
    /// `folder`: of the type of what is attached.
    fn add(&mut self, manifest: &Descriptor, folder: Option<&String>, bytes: Result<Bytes>) {
        let (file, parsed) = match bytes {
            Ok(bytes) => {
                let parsed = Document::parse(&bytes, manifest.digest.as_str());
                (File::bytes(Some(manifest.digest.clone()), bytes), parsed)
            }
            Err(error) => {
                tracing::warn!("{}: {error}", manifest.digest);
                let broken = File { content: Content::Broken(error.clone()), ..File::blob(manifest) };
                (broken, Err(error))
            }
        };
        let own = self.file(file);
        let mut parts = match parsed {
            Ok(Document::Manifest(parts)) => parts,
            _ => Manifest::default(),
        };
        let inline = std::mem::take(&mut parts.inline);
        let mut add = |blob: &Descriptor| match inline.get(&blob.digest) {
            Some(bytes) => self.file(File::bytes(Some(blob.digest.clone()), bytes.clone())),
            None => self.file(File::blob(blob)),
        };
        if let Some(config) = &parts.config {
            add(config);
        }
        let layers: Vec<usize> = parts.layers.iter().map(add).collect();
        let Some(folder) = folder else { return };
        let shaped: Vec<_> = parts.layers.into_iter().map(|layer| (layer, Shape::File)).collect();
        let (places, _) = places(&shaped, &HashMap::new());
        let manifest_file = vec!["manifest.json".to_owned()];
        let taken = places.iter().flatten().any(|place| place.first() == manifest_file.first());
        let place = |below: Parts| {
            let above = [folder.clone(), manifest.digest.short().to_owned()];
            above.into_iter().chain(below).collect::<Parts>()
        };
        if !taken {
            self.nodes.push((place(manifest_file), Node::Blob(own)));
        }
        let placed = places.into_iter().zip(layers);
        self.nodes.extend(placed.filter_map(|(below, file)| Some((place(below?), Node::Blob(file)))));
    }

    /// The number of the file, which is there once.
    fn file(&mut self, mut file: File) -> usize {
        let next = self.files.len();
        let Some(digest) = file.digest.clone() else { return next };
        // A blob is kept by its digest: of another size it is none that could be read.
        let size = *self.sizes.entry(digest.clone()).or_insert(file.size);
        if size != file.size {
            let cause = format!("{} bytes in one manifest, {size} in another", file.size);
            file.content = Content::Broken(Error::new(ErrorKind::Corrupt, &digest, cause));
            self.files.push(file);
            return next;
        }
        let number = *self.blobs.entry(digest).or_insert(next);
        if number == next {
            self.files.push(file);
        }
        number
    }
}

fn folder(artifact_type: &str) -> String {
    file_name(artifact_type, '_').unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_type_is_safe_whatever_the_type_says() {
        assert_eq!(
            folder("application/vnd.oci.artifact.signature.v1+text"),
            "application_vnd.oci.artifact.signature.v1+text"
        );
        for hostile in ["", ".", "..", "a\nb", &"x".repeat(300)] {
            assert_eq!(folder(hostile), "unknown");
        }
        assert_eq!(folder("../x"), ".._x");
    }

    #[test]
    fn a_blob_of_two_sizes_is_read_in_one_of_them_only() {
        let digest = Digest::sha256_of(b"abc");
        let blob = |size| Descriptor {
            digest: digest.clone(),
            size,
            media_type: String::new(),
            annotations: Default::default(),
        };
        let mut gathered =
            Gathered { sizes: HashMap::new(), files: Vec::new(), blobs: HashMap::new(), nodes: Vec::new() };
        let first = gathered.file(File::blob(&blob(3)));
        assert_eq!(gathered.file(File::blob(&blob(3))), first);
        let other = gathered.file(File::blob(&blob(4)));
        assert_ne!(other, first);
        assert!(matches!(gathered.files[other].content, Content::Broken(_)));
        assert!(matches!(gathered.files[first].content, Content::Blob(_)));
    }
}
