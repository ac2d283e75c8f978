//! Config and manifest, in the form in which the PASTIS-HD datasets are published.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::metadata::Known;
use super::scan::{Content, Layer};
use super::{Blob, Options, Plan};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::CREATED;
use crate::oci::media_types;
use crate::oci::{LARGEST_MANIFEST, TITLE};
use crate::transfer::pack::Grouping;

pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// What a config has by itself.
const OWN_FIELDS: [&str; 5] = ["schemaVersion", "mediaType", "artifactType", "patches", "tiles"];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    schema_version: u8,
    media_type: &'a str,
    artifact_type: &'a str,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patches: Option<Vec<Part<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tiles: Option<Vec<Part<'a>>>,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tile: Option<&'a str>,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounding_box: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temporal_coverage: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    geometry: Option<Box<RawValue>>,
    layer_digest: &'a str,
    #[serde(rename = "layer_mediaType")]
    layer_media_type: &'a str,
}

/// Refuses what a config says itself.
pub fn check_fields(fields: &Map<String, Value>) -> Result<()> {
    match OWN_FIELDS.iter().find(|own| fields.contains_key(**own)) {
        Some(own) => Err(Error::new(ErrorKind::Usage, own, "this field of config.json is not free")),
        None => Ok(()),
    }
}

impl Plan {
    pub(super) fn config(&self, blobs: &[Blob]) -> Result<Vec<u8>> {
        let per_folder = matches!(self.options.grouping, Grouping::PerFolder);
        let archives = self.layers.iter().zip(blobs).filter_map(|(layer, blob)| match &layer.content {
            Content::Archive { folders, .. } => Some((layer, folders, blob)),
            Content::File(_) => None,
        });
        let parts: Vec<_> = archives
            .map(|(layer, folders, blob)| {
                let known = self.metadata.of(&layer.name);
                let known = known.or_else(|| self.metadata.of_all(folders)).unwrap_or_default();
                let Known { mut fields, bounding_box, temporal_coverage, geometry } = known;
                let own = ["patch_id", "tile", "bounding_box", "geometry", "layer_digest", "layer_mediaType"];
                let given_box = fields.get("bounding_box").cloned();
                fields.retain(|key, _| !own.contains(&key.as_str()));
                Part {
                    patch_id: per_folder.then_some(&layer.name),
                    tile: (!per_folder).then_some(&layer.name),
                    fields,
                    bounding_box: bounding_box.or(given_box),
                    temporal_coverage,
                    geometry,
                    layer_digest: blob.digest.as_str(),
                    layer_media_type: self.options.format.media_type(),
                }
            })
            .collect();
        let (patches, tiles) = if per_folder { (Some(parts), None) } else { (None, Some(parts)) };
        let config = Config {
            schema_version: 2,
            media_type: CONFIG_TYPE,
            artifact_type: &self.options.artifact_type,
            fields: &self.options.fields,
            patches,
            tiles,
        };
        serde_json::to_vec_pretty(&config).map_err(|error| Error::new(ErrorKind::Io, "config.json", error))
    }

    /// `blobs`: one a layer.
    pub(super) fn manifest(&self, config: &Blob, blobs: &[Blob]) -> Result<Vec<u8>> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .zip(blobs)
            .map(|(layer, blob)| {
                json!({
                    "mediaType": media_type(layer, &self.options),
                    "digest": blob.digest.as_str(),
                    "size": blob.size,
                    "annotations": {TITLE: title(layer, &self.options)}
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_types::IMAGE_MANIFEST,
            "artifactType": self.options.artifact_type,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.digest.as_str(), "size": config.size},
            "layers": layers,
            "annotations": {CREATED: self.created()}
        });
        let manifest = manifest.to_string().into_bytes();
        if manifest.len() as u64 > LARGEST_MANIFEST {
            let cause = format!("{} layers make a manifest of more than the 4 MiB that registries take", layers.len());
            return Err(Error::new(ErrorKind::Limit, self.options.folder.display(), cause)
                .hint("make fewer layers with --group"));
        }
        Ok(manifest)
    }
}

pub fn title(layer: &Layer, options: &Options) -> String {
    match layer.content {
        Content::Archive { .. } => format!("{}{}", layer.name, options.format.ending()),
        Content::File(_) => layer.name.clone(),
    }
}

/// A file that is a layer is shown as a file, whatever it is called.
pub fn media_type(layer: &Layer, options: &Options) -> &'static str {
    let ending = layer.name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    match (&layer.content, ending.as_str()) {
        (Content::Archive { .. }, _) => options.format.media_type(),
        (Content::File(_), "json") => "application/json",
        (Content::File(_), "geojson") => "application/geo+json",
        (Content::File(_), "csv") => "text/csv",
        (Content::File(_), "md") => "text/markdown",
        (Content::File(_), "txt") => "text/plain",
        (Content::File(_), _) => "application/octet-stream",
    }
}
