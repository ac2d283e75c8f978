//! Manifests and configs: parsed leniently in what does not matter, strictly in what names a blob.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::{Descriptor, Digest};
use crate::error::{Error, ErrorKind, Result};

/// Bytes; the limit that registries must at least accept (OCI distribution specification, "Pushing Manifests").
pub const LARGEST_MANIFEST: u64 = 4 << 20;

/// What a manifest's bytes can be.
#[derive(Debug, Clone)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// An image manifest, docker's schema 2, or the artifact manifest of OCI 1.1's drafts, whose layers are `blobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub config: Option<Descriptor>,
    #[serde(alias = "blobs")]
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// An image index, docker's manifest list, or an image layout's `index.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

impl Document {
    /// `object` is the name that an error gives to the bytes.
    pub fn parse(bytes: &[u8], object: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Shape<'a> {
            #[serde(borrow, default)]
            manifests: Option<&'a serde_json::value::RawValue>,
        }
        let wrong = |error: serde_json::Error| {
            Error::new(ErrorKind::Protocol, object, format!("the answer is no OCI manifest: {error}"))
                .hint("check the reference")
        };
        let shape: Shape = serde_json::from_slice(bytes).map_err(wrong)?;
        match shape.manifests {
            Some(_) => serde_json::from_slice(bytes).map(Self::Index),
            None => serde_json::from_slice(bytes).map(Self::Manifest),
        }
        .map_err(wrong)
    }
}

/// How a dataset's config names its layers: of every object with a `layer_digest` the first of `patch_id`, `tile`,
/// `id` and `name`. Nothing for a config that is no JSON: a dataset may have any.
pub fn names_by_layer_digest(config: &[u8]) -> HashMap<Digest, String> {
    let mut names = HashMap::new();
    if let Ok(value) = serde_json::from_slice(config) {
        collect_names(&value, &mut names);
    }
    names
}

/// Recursion is bounded by serde_json's own limit of 128 levels.
fn collect_names(value: &Value, names: &mut HashMap<Digest, String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect_names(value, names)),
        Value::Object(fields) => {
            let digest = fields.get("layer_digest").and_then(Value::as_str);
            if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
                let name = ["patch_id", "tile", "id", "name"].iter().find_map(|&key| match fields.get(key)? {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                });
                if let Some(name) = name {
                    names.entry(digest).or_insert(name);
                }
            }
            fields.values().for_each(|value| collect_names(value, names));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:7cff937ff47cf327ab3fe27310da670719f87e86cd1f72c24459c3b542e505e0";

    fn manifest(text: &str) -> Result<Document> {
        Document::parse(text.replace("DIGEST", DIGEST).as_bytes(), "r/x:t")
    }

    #[test]
    fn the_kinds_of_manifest_are_told_by_their_fields() {
        let layer = r#"{"mediaType":"m","digest":"DIGEST","size":3}"#;
        for text in [
            format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#),
            format!(r#"{{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[{layer}]}}"#),
        ] {
            let Document::Manifest(manifest) = manifest(&text).unwrap() else { panic!("{text}") };
            assert_eq!(manifest.layers[0].size, 3);
        }
        let Document::Index(index) = manifest(&format!(r#"{{"manifests":[{layer}]}}"#)).unwrap() else { panic!() };
        assert_eq!(index.manifests[0].digest.as_str(), DIGEST);
    }

    #[test]
    fn what_is_no_manifest_is_an_error_that_names_it() {
        for text in [
            "",
            "<html>",
            "{}",
            "[]",
            r#"{"layers":3}"#,
            r#"{"layers":[{"digest":"sha256:..","size":1}]}"#,
            r#"{"layers":[{"digest":"DIGEST","size":-1}]}"#,
            r#"{"layers":[{"digest":"DIGEST","size":9223372036854775808}]}"#,
            r#"{"layers":[{"digest":"DIGEST"}]}"#,
        ] {
            let error = manifest(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol, "{text}");
            assert!(error.to_string().starts_with("r/x:t: the answer is no OCI manifest"), "{error}");
        }
    }

    #[test]
    fn config_entries_name_layers() {
        let config = format!(
            r#"{{"patches":[{{"patch_id":"10000","layer_digest":"{DIGEST}"}},{{"id":7,"layer_digest":"{}"}},
                {{"layer_digest":"sha256:no"}},{{"patch_id":"x"}}]}}"#,
            DIGEST.replace('7', "8")
        );
        let names = names_by_layer_digest(config.as_bytes());
        assert_eq!(names.len(), 2);
        assert_eq!(names[&DIGEST.parse().unwrap()], "10000");
        assert_eq!(names[&DIGEST.replace('7', "8").parse().unwrap()], "7");
        assert!(names_by_layer_digest(b"no JSON").is_empty());
    }
}
