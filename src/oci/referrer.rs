//! Referrers: manifests that name another one as their `subject`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::manifest::or_default;
use super::{Descriptor, Digest};

/// What a registry says of one (distribution specification, "Listing Referrers").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    #[serde(flatten)]
    pub descriptor: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub artifact_type: String,
}

impl Referrer {
    /// From its manifest, if that names `subject`.
    pub fn of_manifest(manifest: &[u8], digest: &Digest, subject: &Digest) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            media_type: String,
            #[serde(default, deserialize_with = "or_default")]
            artifact_type: String,
            subject: Descriptor,
            #[serde(default)]
            config: Option<Descriptor>,
            #[serde(default, deserialize_with = "or_default")]
            annotations: BTreeMap<String, String>,
        }
        let wire: Wire = serde_json::from_slice(manifest).ok()?;
        let Wire { media_type, mut artifact_type, config, annotations, .. } = wire;
        if artifact_type.is_empty() {
            artifact_type = config.map(|config| config.media_type).unwrap_or_default();
        }
        let descriptor = Descriptor { digest: digest.clone(), size: manifest.len() as u64, media_type, annotations };
        (wire.subject.digest == *subject).then_some(Self { descriptor, artifact_type })
    }

    /// As it stands in an index.
    pub fn to_json(&self) -> Value {
        let Descriptor { digest, size, media_type, annotations } = &self.descriptor;
        let mut json = json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size });
        if let Some(fields) = json.as_object_mut() {
            if !annotations.is_empty() {
                fields.insert("annotations".to_owned(), json!(annotations));
            }
            if !self.artifact_type.is_empty() {
                fields.insert("artifactType".to_owned(), json!(self.artifact_type));
            }
        }
        json
    }
}

/// The tag that has the list where a registry has no API for it (distribution specification, "Referrers Tag Schema").
pub fn referrers_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), hex.get(..64).unwrap_or(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_referrer_is_told_by_its_subject_and_typed_by_artifact_type_or_config() {
        let (subject, digest) = (Digest::sha256_of(b"s"), Digest::sha256_of(b"m"));
        let blob = |media_type: &str, of: &Digest| json!({ "mediaType": media_type, "digest": of.as_str(), "size": 1 });
        let mut manifest = json!({ "mediaType": "m", "config": blob("c", &digest), "annotations": { "a": "b" } });
        let read = |manifest: &Value| Referrer::of_manifest(manifest.to_string().as_bytes(), &digest, &subject);
        assert_eq!(read(&manifest), None);
        manifest["subject"] = blob("m", &digest);
        assert_eq!(read(&manifest), None);
        manifest["subject"] = blob("m", &subject);
        assert_eq!(read(&manifest).unwrap().artifact_type, "c");
        manifest["artifactType"] = json!("t");
        let referrer = read(&manifest).unwrap();
        assert_eq!(referrer.artifact_type, "t");
        assert_eq!(serde_json::from_value::<Referrer>(referrer.to_json()).unwrap(), referrer);
    }

    #[test]
    fn the_tag_of_a_list_is_the_digest_cut_to_64_digits() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(referrers_tag(&digest), format!("sha256-{}", digest.hex()));
        let long: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert_eq!(referrers_tag(&long), format!("sha512-{}", "a".repeat(64)));
    }
}
