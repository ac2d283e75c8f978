//! Annotations of what is made of files, given one by one or in a file as oras has it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::transfer::push::FileLayer;

/// Bytes.
const LARGEST_ANNOTATIONS: u64 = 16 << 20;

/// What `--annotation` and `--annotation-file` give to layers, and what to manifest and config.
pub fn annotate(
    layers: &mut [FileLayer],
    annotation: &[(String, String)],
    file: Option<&Path>,
) -> Result<[BTreeMap<String, String>; 2]> {
    let mut given = file.map_or_else(|| Ok(BTreeMap::new()), read_annotations)?;
    let mut annotations = given.remove("$manifest").unwrap_or_default();
    for (key, value) in annotation {
        if annotations.insert(key.clone(), value.clone()).is_some() {
            return Err(Error::new(ErrorKind::Usage, key, "this annotation is given twice"));
        }
    }
    let config_annotations = given.remove("$config").unwrap_or_default();
    for layer in layers {
        layer.annotations = given.remove(&layer.title).unwrap_or_default();
    }
    if let Some(name) = given.keys().next() {
        tracing::warn!("{}: annotations of no file that is pushed", crate::error::printable(name));
    }
    Ok([annotations, config_annotations])
}

fn read_annotations(path: &Path) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let wrong = |cause: &dyn std::fmt::Display| {
        let cause = format!("not a file of annotations: {cause}");
        Error::new(ErrorKind::Usage, path.display(), cause).hint(r#"write {"$manifest": {"KEY": "VALUE"}}"#)
    };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST_ANNOTATIONS).read_to_string(&mut text));
    read.map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}
