use tempfile::tempdir;

use super::*;
use crate::blob::Layout;
use crate::oci::{LayoutReference, Reference};

const NAMES: [&str; 3] = ["blobs", "index.json", "oci-layout"];

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put(layout: &LayoutWriter, bytes: &[u8]) -> Blob {
    layout.put(&Digest::sha256_of(bytes), bytes).unwrap()
}

fn entry(blob: &Blob) -> Value {
    json!({"mediaType": "m", "digest": blob.digest.as_str(), "size": blob.size})
}

fn tagged(folder: &Path, tag: &str) -> Digest {
    let Ok(Reference::Layout(reference)) = format!("oci:{}:{tag}", folder.display()).parse() else { panic!() };
    let reference: LayoutReference = reference;
    Layout::new(reference).manifest().unwrap().0
}

#[test]
fn writers_at_the_same_time_lose_nothing_of_each_other() {
    let dir = tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let at = dir.path().join("new");
            scope.spawn(move || {
                for turn in 0..5 {
                    let layout = LayoutWriter::open(&at).unwrap();
                    let own = put(&layout, format!("{thread} {turn}").as_bytes());
                    put(&layout, b"common");
                    layout.tag(entry(&own), Some(&format!("t{thread}-{turn}"))).unwrap();
                }
            });
        }
    });
    let at = dir.path().join("new");
    for thread in 0..8 {
        for turn in 0..5 {
            let manifest = format!("{thread} {turn}");
            assert_eq!(tagged(&at, &format!("t{thread}-{turn}")), Digest::sha256_of(manifest.as_bytes()));
        }
    }
    assert_eq!(names(&at), NAMES);
    assert_eq!(names(&at.join("blobs/sha256")).len(), 41);
}

#[test]
fn a_tag_names_the_last_manifest_and_others_stay() {
    let dir = tempdir().unwrap();
    let layout = LayoutWriter::open(dir.path()).unwrap();
    let [a, b, c] = ["{}", "{ }", "{  }"].map(|bytes| put(&layout, bytes.as_bytes()));
    layout.tag(entry(&a), Some("a")).unwrap();
    layout.tag(entry(&b), Some("b")).unwrap();
    layout.tag(entry(&c), None).unwrap();
    layout.tag(entry(&c), None).unwrap();
    layout.tag(entry(&c), Some("a")).unwrap();
    assert_eq!((tagged(dir.path(), "a"), tagged(dir.path(), "b")), (c.digest, b.digest));
    let index: Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
}

#[test]
fn what_a_killed_writer_left_goes_and_what_is_being_written_stays() {
    let dir = tempdir().unwrap();
    let layout = LayoutWriter::open(dir.path()).unwrap();
    let mut writing = layout.new_blob().unwrap();
    fs::write(dir.path().join(".eo-mount-killed"), "half").unwrap();
    LayoutWriter::open(dir.path()).unwrap();
    assert!(!dir.path().join(".eo-mount-killed").exists());
    writing.write_all(b"whole").unwrap();
    let blob = writing.finish().unwrap();
    assert_eq!(fs::read(layout.path_of(&blob.digest)).unwrap(), b"whole");
    drop(layout.new_blob().unwrap());
    assert_eq!(names(dir.path()), ["blobs", "oci-layout"]);
}

#[test]
fn a_folder_of_other_things_is_not_made_a_layout() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = LayoutWriter::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("not empty, and no image layout"), "{error}");
    assert_eq!(names(dir.path()), ["thesis.tex"]);
    let other = tempdir().unwrap();
    fs::write(other.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert_eq!(LayoutWriter::open(other.path()).unwrap_err().kind, ErrorKind::Unsupported);
}
