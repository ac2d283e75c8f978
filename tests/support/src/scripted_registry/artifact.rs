//! Artifacts as `oras push` makes them.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::ScriptedRegistry;
use crate::sha256;

/// The media type of an image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an uncompressed tar layer.
pub const TAR_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// The media type of an image config, which the PASTIS datasets use for theirs.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// `sha256:` and 64 digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// `mediaType`.
    pub media_type: String,
    /// Empty: not written at all.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn of(bytes: &[u8], media_type: &str) -> Self {
        Self {
            digest: sha256(bytes),
            size: bytes.len() as u64,
            media_type: media_type.to_owned(),
            annotations: BTreeMap::new(),
        }
    }

    /// As it stands in a manifest.
    pub fn to_json(&self) -> Value {
        let mut value = json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size});
        if !self.annotations.is_empty() {
            value["annotations"] = json!(self.annotations);
        }
        value
    }
}

/// What `oras push reference --artifact-type … --config config.json:… a.tar:… b.tar:…` makes, but for the
/// annotation with the time.
#[derive(Debug, Clone)]
pub struct Artifact {
    artifact_type: String,
    config: Option<(Bytes, String)>,
    layers: Vec<(Descriptor, Option<Bytes>)>,
    annotations: BTreeMap<String, String>,
    subject: Option<Descriptor>,
}

impl Default for Artifact {
    fn default() -> Self {
        Self::new()
    }
}

impl Artifact {
    /// No layers, the empty config, the artifact type of the PASTIS datasets.
    pub fn new() -> Self {
        Self {
            artifact_type: "application/vnd.whatever.v1+tar".to_owned(),
            config: None,
            layers: Vec::new(),
            annotations: BTreeMap::new(),
            subject: None,
        }
    }

    /// `--artifact-type`.
    pub fn artifact_type(mut self, artifact_type: &str) -> Self {
        self.artifact_type = artifact_type.to_owned();
        self
    }

    /// `--config`, with its media type.
    pub fn config(mut self, bytes: impl Into<Bytes>, media_type: &str) -> Self {
        self.config = Some((bytes.into(), media_type.to_owned()));
        self
    }

    /// A layer with the title as its only annotation.
    pub fn layer(mut self, title: Option<&str>, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let mut descriptor = Descriptor::of(&bytes, media_type);
        descriptor.annotations.extend(title.map(|title| (TITLE.to_owned(), title.to_owned())));
        self.layers.push((descriptor, Some(bytes)));
        self
    }

    /// A tar layer, titled as given.
    pub fn tar(self, title: &str, bytes: impl Into<Bytes>) -> Self {
        self.layer(Some(title), TAR_TYPE, bytes)
    }

    /// A layer whose blob was put into the registry by itself, or is meant to be missing.
    pub fn layer_of(mut self, title: Option<&str>, descriptor: Descriptor) -> Self {
        let mut descriptor = descriptor;
        descriptor.annotations.extend(title.map(|title| (TITLE.to_owned(), title.to_owned())));
        self.layers.push((descriptor, None));
        self
    }

    /// Annotates the last layer; before the first layer, the manifest.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        let annotations = match self.layers.last_mut() {
            Some((descriptor, _)) => &mut descriptor.annotations,
            None => &mut self.annotations,
        };
        annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// What this artifact is attached to, as `oras attach` writes it.
    pub fn subject(mut self, subject: Descriptor) -> Self {
        self.subject = Some(subject);
        self
    }

    /// Descriptors of the layers, in their order.
    pub fn layers(&self) -> Vec<Descriptor> {
        self.layers.iter().map(|(descriptor, _)| descriptor.clone()).collect()
    }

    /// The manifest's bytes.
    pub fn manifest(&self) -> Vec<u8> {
        let (config, media_type) = self.config_blob();
        let mut config_json = Descriptor::of(&config, &media_type).to_json();
        if self.config.is_none() {
            config_json["data"] = json!("e30=");
        }
        let layers: Vec<Value> = self.layers.iter().map(|(descriptor, _)| descriptor.to_json()).collect();
        let mut manifest = Map::new();
        manifest.insert("schemaVersion".into(), json!(2));
        manifest.insert("mediaType".into(), json!(MANIFEST_TYPE));
        manifest.insert("artifactType".into(), json!(self.artifact_type));
        manifest.insert("config".into(), config_json);
        manifest.insert("layers".into(), json!(layers));
        if let Some(subject) = &self.subject {
            manifest.insert("subject".into(), subject.to_json());
        }
        if !self.annotations.is_empty() {
            manifest.insert("annotations".into(), json!(self.annotations));
        }
        Value::Object(manifest).to_string().into_bytes()
    }

    /// Puts blobs and manifest into the registry; the manifest's descriptor.
    pub fn push(&self, registry: &ScriptedRegistry, repository: &str, tag: &str) -> Descriptor {
        for bytes in self.blobs() {
            registry.put_blob(bytes);
        }
        let manifest = self.manifest();
        registry.put_manifest(repository, tag, manifest.clone());
        Descriptor::of(&manifest, MANIFEST_TYPE)
    }

    /// Writes an OCI image layout, which may hold other artifacts already; the manifest's descriptor.
    pub fn write_layout(&self, directory: &Path, tag: &str) -> Descriptor {
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap_or_else(|error| panic!("{}: {error}", blobs.display()));
        let manifest = self.manifest();
        for bytes in self.blobs().into_iter().chain([Bytes::from(manifest.clone())]) {
            write(&blobs.join(&sha256(&bytes)["sha256:".len()..]), &bytes);
        }
        write(&directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = directory.join("index.json");
        let mut manifests = match std::fs::read(&index) {
            Ok(bytes) => {
                serde_json::from_slice::<Value>(&bytes).expect("an index written by this function")["manifests"].take()
            }
            Err(_) => json!([]),
        };
        let descriptor = Descriptor::of(&manifest, MANIFEST_TYPE);
        let mut entry = descriptor.to_json();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entry["artifactType"] = json!(self.artifact_type);
        manifests.as_array_mut().expect("a list of manifests").push(entry);
        let text =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
        write(&index, text.to_string().as_bytes());
        descriptor
    }

    fn config_blob(&self) -> (Bytes, String) {
        self.config.clone().unwrap_or_else(|| (Bytes::from_static(b"{}"), EMPTY_TYPE.to_owned()))
    }

    fn blobs(&self) -> Vec<Bytes> {
        let layers = self.layers.iter().filter_map(|(_, bytes)| bytes.clone());
        layers.chain([self.config_blob().0]).collect()
    }
}
