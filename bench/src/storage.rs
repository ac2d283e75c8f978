//! Artifacts put into a registry's storage without pushing them: a tile of 17 GB is neither sent nor copied.
//! The layout is that of `registry/storage/paths.go` in distribution, the same in 2.8 and 3.

use std::path::{Path, PathBuf};

use eo_mount_testing::{Artifact, Descriptor, RealRegistry, sha256};

/// Where a blob's bytes are.
pub enum Source<'a> {
    Bytes(&'a [u8]),
    /// Gets a second name in the storage, which must be in the same file system.
    File(&'a Path),
}

/// Puts an artifact with these blobs into a repository, and the empty config.
pub fn place(registry: &RealRegistry, repository: &str, tag: &str, artifact: &Artifact, blobs: &[(&str, Source<'_>)]) {
    let root = registry.storage().join("docker/registry/v2");
    let own = root.join("repositories").join(repository);
    let manifest = artifact.manifest();
    let (config, revision) = (sha256(b"{}"), sha256(&manifest));
    place_blob(&root, &config, &Source::Bytes(b"{}"));
    place_blob(&root, &revision, &Source::Bytes(&manifest));
    for (digest, source) in blobs {
        place_blob(&root, digest, source);
    }
    for digest in blobs.iter().map(|(digest, _)| *digest).chain([config.as_str()]) {
        link(own.join("_layers"), digest, digest);
    }
    let manifests = own.join("_manifests");
    link(manifests.join("revisions"), &revision, &revision);
    link(manifests.join("tags").join(tag).join("index"), &revision, &revision);
    write(&manifests.join("tags").join(tag).join("current/link"), revision.as_bytes());
}

/// A layer whose bytes are placed by [`place`].
pub fn layer(digest: &str, size: u64) -> Descriptor {
    Descriptor {
        digest: digest.to_owned(),
        size,
        media_type: eo_mount_testing::scripted_registry::TAR_TYPE.to_owned(),
        annotations: Default::default(),
    }
}

fn place_blob(root: &Path, digest: &str, source: &Source<'_>) {
    let hex = digest.trim_start_matches("sha256:");
    let data = root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
    match source {
        Source::Bytes(bytes) => write(&data, bytes),
        Source::File(file) => {
            make_parent(&data);
            std::fs::hard_link(file, &data)
                .unwrap_or_else(|error| panic!("{} as {}: {error}", file.display(), data.display()));
        }
    }
}

/// `<folder>/sha256/<hex>/link`, whose content is a digest.
fn link(folder: PathBuf, name: &str, digest: &str) {
    write(&folder.join(name.replace(':', "/")).join("link"), digest.as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    make_parent(path);
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn make_parent(path: &Path) {
    let parent = path.parent().expect("a file is in a folder");
    std::fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
}
