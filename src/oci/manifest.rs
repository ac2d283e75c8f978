//! Manifests and configs: parsed leniently in what does not matter, strictly in what names a blob.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Descriptor, Digest, Platform};
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
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Wire")]
pub struct Manifest {
    pub media_type: String,
    pub artifact_type: Option<String>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
    /// Blobs that the manifest brings along as `data`, checked; what is not what it should be is left out.
    pub inline: HashMap<Digest, Bytes>,
    /// Where somebody else has a blob, the first of its `urls`.
    pub elsewhere: HashMap<Digest, String>,
}

/// An image index, docker's manifest list, or an image layout's `index.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub manifests: Vec<Listed>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest in an index.
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    #[serde(flatten)]
    pub descriptor: Descriptor,
    #[serde(default)]
    pub platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Option<Blob>,
    /// A list without members is `null` to programs in Go.
    #[serde(alias = "blobs", default, deserialize_with = "or_default")]
    layers: Vec<Blob>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Blob {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    data: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    urls: Vec<String>,
}

pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl From<Wire> for Manifest {
    fn from(wire: Wire) -> Self {
        let Wire { media_type, artifact_type, config, layers, annotations } = wire;
        let mut manifest = Self { media_type, artifact_type, annotations, ..Self::default() };
        manifest.config = config.map(|blob| manifest.take(blob));
        manifest.layers = layers.into_iter().map(|blob| manifest.take(blob)).collect();
        manifest
    }
}

impl Manifest {
    fn take(&mut self, blob: Blob) -> Descriptor {
        let Blob { descriptor, data, urls } = blob;
        let data = data.and_then(|data| BASE64_STANDARD.decode(data).ok());
        let is_it = |data: &Vec<u8>| data.len() as u64 == descriptor.size && descriptor.digest.check(data).is_ok();
        if let Some(data) = data.filter(is_it) {
            self.inline.insert(descriptor.digest.clone(), data.into());
        }
        if let Some(url) = urls.into_iter().next() {
            self.elsewhere.insert(descriptor.digest.clone(), url);
        }
        descriptor
    }
}

impl Document {
    /// `object` is the name that an error gives to the bytes.
    pub fn parse(bytes: &[u8], object: &str) -> Result<Self> {
        /// Which of these are there.
        #[derive(Deserialize)]
        struct Shape {
            #[serde(default, deserialize_with = "any")]
            manifests: bool,
            #[serde(alias = "blobs", default, deserialize_with = "any")]
            layers: bool,
            #[serde(default, deserialize_with = "any")]
            config: bool,
        }
        let wrong = |cause: &dyn fmt::Display| {
            Error::new(ErrorKind::Protocol, object, format!("the answer is no OCI manifest: {cause}"))
                .hint("check the reference")
        };
        match serde_json::from_slice(bytes).map_err(|error| wrong(&error))? {
            Shape { manifests: true, .. } => serde_json::from_slice(bytes).map(Self::Index),
            Shape { layers: false, config: false, .. } => return Err(wrong(&"it has neither layers nor manifests")),
            _ => serde_json::from_slice(bytes).map(Self::Manifest),
        }
        .map_err(|error| wrong(&error))
    }
}

/// How a dataset's config names its layers: of every object with a `layer_digest` the first of `patch_id`, `tile`,
/// `id` and `name`. Nothing for a config that is no JSON: a dataset may have any.
pub fn names_by_layer_digest(config: &[u8]) -> HashMap<Digest, String> {
    let mut names = HashMap::new();
    // Recursion is bounded by serde_json's own limit of 128 levels.
    let mut json = serde_json::Deserializer::from_slice(config);
    let read = Names(&mut names).deserialize(&mut json).and_then(|_| json.end());
    if read.is_err() {
        names.clear();
    }
    names
}

/// Keeps the names and nothing else: as a `serde_json::Value` a config could take thirty times its size. The value of
/// a string or number is its text.
struct Names<'a>(&'a mut HashMap<Digest, String>);

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self::Value, A::Error> {
        while values.next_element_seed(Names(self.0))?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        const KEYS: [&str; 4] = ["patch_id", "tile", "id", "name"];
        let (mut digest, mut best) = (None, None);
        while let Some(key) = fields.next_key::<String>()? {
            let Some(text) = fields.next_value_seed(Names(self.0))? else { continue };
            if key == "layer_digest" {
                digest = text.parse().ok();
            } else if let Some(rank) = KEYS.iter().position(|known| *known == key)
                && best.as_ref().is_none_or(|(best, _)| rank <= *best)
            {
                best = Some((rank, text));
            }
        }
        if let (Some(digest), Some((_, name))) = (digest, best) {
            self.0.entry(digest).or_insert(name);
        }
        Ok(None)
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
        assert_eq!(index.manifests[0].descriptor.digest.as_str(), DIGEST);
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
        assert!(names_by_layer_digest(format!("{config} and more").as_bytes()).is_empty());
        assert!(names_by_layer_digest("[".repeat(1_000_000).as_bytes()).is_empty());
    }
}
