//! An image layout on disk as a source (OCI image specification, image-layout.md).

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, LARGEST_MANIFEST, LayoutReference, Listed, REF_NAME, Referrer};

pub struct Layout {
    reference: LayoutReference,
}

impl Layout {
    pub fn new(reference: LayoutReference) -> Self {
        Self { reference }
    }

    /// The manifest that the reference names, with its digest.
    pub fn manifest(&self) -> Result<(Digest, Bytes)> {
        let digest = match &self.reference.digest {
            Some(digest) => digest.clone(),
            None => self.tagged()?,
        };
        let bytes = read_small(&self.blob_path(&digest))?;
        digest.check(&bytes)?;
        Ok((digest, bytes.into()))
    }

    pub fn reference(&self) -> &LayoutReference {
        &self.reference
    }

    /// The manifests of the layout that name `subject`. One that cannot be read is none of them.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Referrer>> {
        let path = self.reference.directory.join("index.json");
        let Document::Index(index) = Document::parse(&read_small(&path)?, &path.display().to_string())? else {
            return Err(self.no_layout());
        };
        let mut seen = HashSet::new();
        let digests = index.manifests.into_iter().map(|listed| listed.descriptor.digest);
        let found = digests.filter(|digest| digest != subject && seen.insert(digest.clone())).filter_map(|digest| {
            let bytes = read_small(&self.blob_path(&digest)).ok()?;
            digest.check(&bytes).ok()?;
            Referrer::of_manifest(&bytes, &digest, subject)
        });
        Ok(found.collect())
    }

    /// The manifest with the reference's tag in `index.json`; without a tag the only one.
    fn tagged(&self) -> Result<Digest> {
        let path = self.reference.directory.join("index.json");
        let object = path.display().to_string();
        let bytes = read_small(&path).map_err(|error| match error.kind {
            ErrorKind::NotFound => self.no_layout(),
            _ => error,
        })?;
        let Document::Index(index) = Document::parse(&bytes, &object)? else {
            return Err(self.no_layout());
        };
        let tag_of = |listed: &Listed| listed.descriptor.annotations.get(REF_NAME).cloned();
        let mut found = match &self.reference.tag {
            Some(tag) => index.manifests.iter().filter(|m| tag_of(m).as_ref() == Some(tag)).collect::<Vec<_>>(),
            None => index.manifests.iter().collect(),
        };
        match (found.pop(), found.is_empty()) {
            (Some(listed), true) => Ok(listed.descriptor.digest.clone()),
            (found, _) => {
                let tags: Vec<_> = index.manifests.iter().take(10).filter_map(tag_of).collect();
                let cause = match found {
                    None => "no such tag in the layout",
                    Some(_) => "more than one manifest in the layout fits",
                };
                Err(Error::new(ErrorKind::NotFound, &self.reference, cause)
                    .hint(format!("its tags are: {}", crate::error::printable(&tags.join(", ")))))
            }
        }
    }

    fn no_layout(&self) -> Error {
        let cause = "no image layout: it has no index.json that is one";
        Error::new(ErrorKind::NotFound, self.reference.directory.display(), cause)
            .hint("write oci:DIRECTORY:TAG, with a directory as `oras copy --to-oci-layout` makes it")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.reference.directory.join("blobs").join(digest.algorithm()).join(digest.hex())
    }
}

impl BlobSource for Layout {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let (path, size) = (self.blob_path(&blob.digest), blob.size);
        async move {
            // A layout may lie on a network file system that hangs.
            tokio::task::spawn_blocking(move || {
                let read = || {
                    let file = File::open(&path)?;
                    let found = file.metadata()?.len();
                    // One of another length is another blob, whatever the range.
                    Ok(if found == size { Ok(read_exactly(&file, range)?) } else { Err(found) })
                };
                read().map_err(|error| io_error(&path, &error))?.map_err(|found| {
                    let cause = format!("it has {found} bytes, {size} in the manifest");
                    incomplete(ErrorKind::Corrupt, &path, &cause)
                })
            })
            .await
            .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &blob.digest, panic)))
        }
        .boxed()
    }
}

fn read_exactly(file: &File, range: Range<u64>) -> std::io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_MANIFEST + 1).read_to_end(&mut bytes))
        .map_err(|error| io_error(path, &error))?;
    if bytes.len() as u64 > LARGEST_MANIFEST {
        return Err(Error::new(ErrorKind::Limit, path.display(), "larger than the 4 MiB that a manifest may have"));
    }
    Ok(bytes)
}

fn io_error(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => incomplete(ErrorKind::NotFound, path, "no such file in the image layout"),
        std::io::ErrorKind::UnexpectedEof => incomplete(ErrorKind::Corrupt, path, "it ends too early"),
        std::io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Denied, path.display(), "no permission to read it").hint("chmod -R u+r the layout")
        }
        _ => Error::new(ErrorKind::Io, path.display(), error),
    }
}

fn incomplete(kind: ErrorKind, path: &Path, cause: &str) -> Error {
    Error::new(kind, path.display(), cause).hint("the layout is incomplete or damaged: copy it again")
}
