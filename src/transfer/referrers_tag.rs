//! The list of what is attached, where a registry has no API for it: an index under a tag (distribution specification,
//! "Referrers Tag Schema"), which everybody who attaches reads, adds to, and writes back.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{Digest, LARGEST_MANIFEST, Referrer, referrers_tag};
use crate::registry::{List, Registry};

/// Nobody takes longer from reading a list to writing it back, unless it is this one who does.
const WATCH: Duration = Duration::from_secs(1);
/// Looks at the list during that time.
const LOOKS: u32 = 3;

/// Sees to it that `referrer` is found by those who look for what is attached to `subject`. Registries cannot be told
/// to write only where nobody else has written: so the list is looked at until everybody else who had read it before
/// must have written it, and written again if this one has got lost.
pub async fn list_by_tag(registry: &Registry, subject: &Digest, referrer: &Referrer, timeout: Duration) -> Result<()> {
    list_all_by_tag(registry, subject, std::slice::from_ref(referrer), timeout).await
}

/// Several at once.
pub async fn list_all_by_tag(
    registry: &Registry,
    subject: &Digest,
    referrers: &[Referrer],
    timeout: Duration,
) -> Result<()> {
    if registry.referrers(subject, List::Api).await?.referrers.is_some() {
        return Ok(());
    }
    let work = write_list(registry, subject, referrers);
    timeout_at(Instant::now() + timeout, work).await.unwrap_or_else(|_| {
        let cause = "others write the list of what is attached all the time";
        Err(Error::new(ErrorKind::TimedOut, referrers_tag(subject), cause).hint("attach it again: it takes no upload"))
    })
}

async fn write_list(registry: &Registry, subject: &Digest, referrers: &[Referrer]) -> Result<()> {
    let tag = referrers_tag(subject);
    // Who writes.
    let own =
        Digest::sha256_of(referrers.iter().map(|one| one.descriptor.digest.as_str()).collect::<String>().as_bytes());
    loop {
        let begin = Instant::now();
        if let Some(list) = with(registry.referrers_of_tag(subject).await?, referrers, &tag)? {
            registry.put_manifest(&tag, media_types::IMAGE_INDEX, &list).await?;
        }
        let watch = WATCH.max(begin.elapsed() * 4) + jitter(&own);
        let mut is_there = true;
        for _ in 0..LOOKS {
            sleep(watch / LOOKS).await;
            is_there = with(registry.referrers_of_tag(subject).await?, referrers, &tag)?.is_none();
            if !is_there {
                break;
            }
        }
        if is_there {
            return Ok(());
        }
        tracing::debug!("{tag}: somebody else wrote it at the same time; writing it again");
        sleep(jitter(&Digest::sha256_of(format!("{begin:?}{own}").as_bytes()))).await;
    }
}

/// The list with these; `None`: they are in it. All that is in the list stays as it is.
fn with(list: Option<Bytes>, referrers: &[Referrer], tag: &str) -> Result<Option<Bytes>> {
    let no_list = || {
        let cause = "the tag that is meant for the list of what is attached names something else";
        Error::new(ErrorKind::Protocol, tag, cause).hint("tell whoever pushed it")
    };
    let mut list: Value = match list {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| no_list())?,
        None => json!({ "schemaVersion": 2, "mediaType": media_types::IMAGE_INDEX, "manifests": [] }),
    };
    if list.get("mediaType").is_some_and(|own| own != media_types::IMAGE_INDEX) {
        return Err(no_list());
    }
    let manifests = list.get_mut("manifests").ok_or_else(no_list)?;
    if manifests.is_null() {
        *manifests = json!([]);
    }
    let manifests = manifests.as_array_mut().ok_or_else(no_list)?;
    let known: HashSet<&str> = manifests.iter().filter_map(|known| known.get("digest")?.as_str()).collect();
    let missing = referrers.iter().filter(|one| !known.contains(one.descriptor.digest.as_str()));
    let missing: Vec<Value> = missing.map(Referrer::to_json).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    manifests.extend(missing);
    let bytes = list.to_string();
    if bytes.len() as u64 > LARGEST_MANIFEST {
        let cause = "so much is attached that the list of it would be larger than the 4 MiB that registries take";
        return Err(
            Error::new(ErrorKind::Limit, tag, cause).hint("delete some, or use a registry with the referrers API")
        );
    }
    Ok(Some(bytes.into()))
}

/// Another one for each who writes, so that they do not all come at once.
fn jitter(digest: &Digest) -> Duration {
    let number = digest.hex().get(..4).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
    Duration::from_millis(number % 400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;

    fn referrer(name: &str) -> Referrer {
        let digest = Digest::sha256_of(name.as_bytes());
        let descriptor = Descriptor { digest, size: 3, media_type: "m".into(), annotations: Default::default() };
        Referrer { descriptor, artifact_type: "t".into() }
    }

    #[test]
    fn a_list_is_added_to_once_and_keeps_what_others_wrote() {
        let list = with(None, &[referrer("a")], "t").unwrap().unwrap();
        assert_eq!(with(Some(list.clone()), &[referrer("a")], "t").unwrap(), None);
        let mut known: Value = serde_json::from_slice(&list).unwrap();
        known["manifests"][0]["platform"] = json!({ "os": "linux" });
        known["annotations"] = json!({ "k": "v" });
        let list = with(Some(known.to_string().into()), &[referrer("b")], "t").unwrap().unwrap();
        let mut now: Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(now["manifests"].as_array_mut().unwrap().pop(), Some(referrer("b").to_json()));
        assert_eq!(now, known);
        assert!(with(Some(r#"{"manifests":null}"#.into()), &[referrer("a")], "t").unwrap().is_some());
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for other in ["", "[]", "{}", r#"{"manifests":3}"#, r#"{"mediaType":"x","manifests":[]}"#] {
            assert_eq!(
                with(Some(other.into()), &[referrer("a")], "t").unwrap_err().kind,
                ErrorKind::Protocol,
                "{other}"
            );
        }
    }
}
