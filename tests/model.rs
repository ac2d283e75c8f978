//! Reads through a mount equal a plain model of the archive: whatever the ranges, from several tasks at once, over an
//! image layout and over a registry, with little memory.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use eo_mount::mount::{AttachedIndex, Ino, Kind, Mount, Options};
use eo_mount_testing::fixtures::{TarFormat, gnu_tar, noise};
use eo_mount_testing::{Artifact, ScriptedRegistry};
use proptest::prelude::*;

/// The least that the command line allows. In each case there is one member that is larger.
const MEMORY: u64 = 16 << 20;
const LARGE: usize = 17 << 20;

/// Content of each file by its path.
type Model = BTreeMap<String, Vec<u8>>;

/// A member: its length, and pieces of data in it at these places of a thousand, the rest being holes; none: no holes.
#[derive(Debug, Clone)]
struct Shape {
    length: usize,
    pieces: Option<Vec<(usize, usize)>>,
}

/// A read: of which file, where in it, and how much.
type Wish = (prop::sample::Index, prop::sample::Index, u32);

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, failure_persistence: None, ..Default::default() })]

    #[test]
    fn reads_equal_the_archive(
        shapes in prop::collection::vec(shape(), 1..12),
        format in prop::sample::select(vec![
            TarFormat::Gnu,
            TarFormat::Posix("0.0"),
            TarFormat::Posix("0.1"),
            TarFormat::Posix("1.0"),
        ]),
        tasks in prop::collection::vec(prop::collection::vec(wish(), 20..60), 4),
    ) {
        let (model, tar) = archive(&shapes, format);
        check(model, tar, tasks)?;
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let length = prop_oneof![Just(0), Just(1), 1..2000_usize, 1..200_000_usize, Just(65_536), 200_000..1_000_000_usize];
    let pieces = prop::option::of(prop::collection::vec((0..1000_usize, 1..200_usize), 0..6));
    (length, pieces).prop_map(|(length, pieces)| Shape { length, pieces })
}

fn wish() -> impl Strategy<Value = Wish> {
    let size = prop_oneof![Just(0_u32), 1..5000_u32, Just(4096), Just(131_072), 1..300_000_u32, Just(2 << 20)];
    (any::<prop::sample::Index>(), any::<prop::sample::Index>(), size)
}

/// The files on disk, for GNU tar to find the holes, and what is in them.
fn archive(shapes: &[Shape], format: TarFormat) -> (Model, Vec<u8>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut model = Model::new();
    let large = Shape { length: LARGE, pieces: None };
    for (number, shape) in shapes.iter().chain([&large]).enumerate() {
        let all = noise(number as u64, shape.length);
        let mut content = vec![0; shape.length];
        let path = format!("{}/{number}", number % 3);
        let place = directory.path().join(&path);
        std::fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
        let file = std::fs::File::create(place).expect("a file");
        file.set_len(shape.length as u64).expect("a length");
        for (start, length) in shape.pieces.clone().unwrap_or(vec![(0, 1000)]) {
            let start = shape.length * start / 1000;
            let end = shape.length.min(start + (shape.length * length).div_ceil(1000));
            content[start..end].copy_from_slice(&all[start..end]);
            file.write_all_at(&all[start..end], start as u64).expect("written");
        }
        model.insert(path, content);
    }
    let tar = gnu_tar(directory.path(), format);
    (model, tar)
}

/// The same over both sources.
fn check(model: Model, tar: Vec<u8>, tasks: Vec<Vec<Wish>>) -> Result<(), TestCaseError> {
    // As the program does at its start.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let registry = ScriptedRegistry::start();
    let layout = tempfile::tempdir().expect("a temporary directory");
    let artifact = Artifact::new().tar("a.tar", tar);
    artifact.push(&registry, "model", "t");
    artifact.write_layout(layout.path(), "t");
    let model = Arc::new(model);
    for reference in [registry.reference("model:t"), format!("oci:{}:t", layout.path().display())] {
        let results = runtime.block_on(async {
            let mount = Arc::new(Mount::open(&reference, options()).await.expect("a mount"));
            let files = Arc::new(files(&mount).await);
            let listed: Vec<_> = files.iter().map(|(path, _, size)| (path.clone(), *size)).collect();
            let expected: Vec<_> = model.iter().map(|(path, content)| (path.clone(), content.len() as u64)).collect();
            prop_assert_eq!(listed, expected);
            let readers: Vec<_> = tasks
                .iter()
                .map(|wishes| tokio::spawn(read_all(mount.clone(), files.clone(), model.clone(), wishes.clone())))
                .collect();
            for reader in readers {
                reader.await.expect("no panic")?;
            }
            Ok(())
        });
        results?;
    }
    Ok(())
}

fn options() -> Options {
    Options {
        plain_http: false,
        access: Default::default(),
        offline: false,
        platform: None,
        cache_dir: None,
        memory: MEMORY,
        timeout: Duration::from_secs(60),
        connections: 16,
        bandwidth: None,
        mirrors: Vec::new(),
        require_ranges: false,
        allow_local_redirects: false,
        cache_size: None,
        cache_min_free: 0,
        disk_cache: true,
        verify_blobs: false,
        uid: 0,
        gid: 0,
        preserve_owner: false,
        oci: true,
        verify_key: None,
        attached: AttachedIndex::Found,
    }
}

/// All regular files with their inodes and sizes, sorted by path.
async fn files(mount: &Mount) -> Vec<(String, Ino, u64)> {
    let root = mount.lookup(Ino::ROOT, b"a").await.expect("no failure").expect("the layer");
    let mut found = Vec::new();
    let mut directories = vec![(String::new(), root.ino)];
    while let Some((prefix, directory)) = directories.pop() {
        let mut entries = Vec::new();
        let keep = |entry: eo_mount::mount::Listed<'_>| {
            entries.push((String::from_utf8(entry.name.to_vec()).expect("a name"), entry.attributes));
            true
        };
        mount.list(directory, 0, keep).await.expect("a listing");
        for (name, attributes) in entries.into_iter().filter(|(name, _)| name != "." && name != "..") {
            let path = format!("{prefix}{name}");
            match attributes.kind {
                Kind::Directory => directories.push((format!("{path}/"), attributes.ino)),
                _ => found.push((path, attributes.ino, attributes.size)),
            }
        }
    }
    found.sort();
    found
}

async fn read_all(
    mount: Arc<Mount>,
    files: Arc<Vec<(String, Ino, u64)>>,
    model: Arc<Model>,
    wishes: Vec<Wish>,
) -> Result<(), TestCaseError> {
    for (file, place, size) in wishes {
        let (path, ino, length) = file.get(&files);
        // Also at the end of the file, and a little behind it.
        let offset = place.index(*length as usize + 100);
        let bytes =
            mount.read(*ino, offset as u64, size).await.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let content = &model[path];
        let start = offset.min(content.len());
        let expected = &content[start..content.len().min(offset + size as usize)];
        prop_assert!(bytes == expected, "{size} bytes of {path} at {offset}: {} came", bytes.len());
    }
    Ok(())
}
