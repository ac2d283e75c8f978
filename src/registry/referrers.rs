//! What is attached to a manifest: the referrers API, and the tag that stands in for it where there is none.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LINK};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::answer::{body_up_to, header, status_failure};
use super::client::Registry;
use super::retry::{Failure, Retry};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{Digest, LARGEST_MANIFEST, Referrer, referrers_tag};

/// Bytes of all pages of one list: some ten thousand referrers.
const LONGEST_LIST: u64 = 4 * LARGEST_MANIFEST;
const MOST_PAGES: usize = 1000;
/// Bytes of the answer that there is none, and how long they may take to come.
const LONGEST_REFUSAL: u64 = 64 << 10;
const REFUSAL: Duration = Duration::from_secs(2);

/// Where to look for what is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// The API alone, with one request.
    Api,
    /// The tag alone that stands in for it.
    Tag,
    /// The API, and the tag where there is no API.
    Either,
}

/// What is attached.
#[derive(Debug, Default)]
pub struct Referrers {
    /// `None`: the API was to tell it, and did not.
    pub referrers: Option<Vec<Referrer>>,
    /// `None`: it was not asked, or its answer does not tell.
    pub has_api: Option<bool>,
}

impl Registry {
    /// All that is attached to `subject`. The registry itself is asked: a mirror may not know of the latest. It is not
    /// asked to filter: some compare with the type of the config.
    pub async fn referrers(&self, subject: &Digest, list: List) -> Result<Referrers> {
        self.attempts(subject, || self.try_referrers(subject, list)).await
    }

    /// That index, as it is; `None`: there is none yet.
    pub async fn referrers_of_tag(&self, subject: &Digest) -> Result<Option<Bytes>> {
        Ok(self.tagged(&referrers_tag(subject), subject).await?.map(|(_, bytes)| bytes))
    }

    /// What another tag names that is about `subject`; `None`: there is no such tag.
    pub async fn tagged(&self, tag: &str, subject: &Digest) -> Result<Option<(Digest, Bytes)>> {
        self.attempts(subject, || self.try_tagged(tag)).await
    }

    async fn attempts<T, A: Future<Output = Result<T, Failure>>>(
        &self,
        subject: &Digest,
        attempt: impl Fn() -> A,
    ) -> Result<T> {
        let retry = Retry::a_few_times_within(self.timeout);
        let attempt = async || {
            let _leave = self.room(self.connections.acquire_one()).await;
            attempt().await
        };
        retry.run(subject.as_str(), &self.back, &self.traffic, attempt).await
    }

    async fn try_referrers(&self, subject: &Digest, list: List) -> Result<Referrers, Failure> {
        let mut listed = match list {
            List::Tag => Referrers::default(),
            List::Api | List::Either => self.by_api(subject).await?,
        };
        if listed.referrers.is_none() && list != List::Api {
            listed.referrers = Some(self.by_tag(subject).await?);
        }
        Ok(listed)
    }

    async fn by_api(&self, subject: &Digest) -> Result<Referrers, Failure> {
        let (endpoint, object) = (self.origin(), subject.as_str());
        let mut path = format!("referrers/{subject}");
        let (mut referrers, mut room) = (Vec::new(), LONGEST_LIST);
        for page in 0..MOST_PAGES {
            let headers = HeaderMap::from_iter([(ACCEPT, header(media_types::IMAGE_INDEX)?)]);
            let (answer, from) = endpoint.request(Method::GET, &path, headers, None, &endpoint.pull(), object).await?;
            let is_index = |answer: &reqwest::Response| {
                let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                media_type
                    .is_some_and(|value| value.split(';').next().unwrap_or_default().trim() == media_types::IMAGE_INDEX)
            };
            match answer.status() {
                // Some registries answer any address with a page for people.
                StatusCode::OK if page > 0 || is_index(&answer) => {}
                StatusCode::OK if page == 0 => return Ok(Referrers::default()),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED if page == 0 => {
                    let body = timeout(REFUSAL, body_up_to(answer, LONGEST_REFUSAL, object, &self.traffic)).await;
                    // Some that have the API say so of a repository or a manifest that they do not know.
                    let tells = matches!(body, Ok(Ok(body)) if !String::from_utf8_lossy(&body).contains("_UNKNOWN"));
                    return Ok(Referrers { referrers: None, has_api: tells.then_some(false) });
                }
                _ => return Err(status_failure(object, &answer)),
            }
            let next = answer.headers().get(LINK).and_then(|link| next_page(link.to_str().ok()?, &from));
            let bytes = body_up_to(answer, room.min(LARGEST_MANIFEST), object, &self.traffic).await?;
            room = room.saturating_sub(bytes.len() as u64);
            referrers.extend(list(&bytes, object)?);
            let Some(next) = next else {
                return Ok(Referrers { referrers: Some(each_once(referrers)), has_api: Some(true) });
            };
            if next.origin() != from.origin() {
                let cause = "the list of what is attached goes on at another registry";
                return Err(Error::new(ErrorKind::Protocol, object, cause).hint("tell the registry's operator").into());
            }
            path = next.into();
        }
        let cause = format!("the list of what is attached has more than {MOST_PAGES} pages");
        Err(Error::new(ErrorKind::Limit, object, cause).hint("tell the registry's operator").into())
    }

    async fn by_tag(&self, subject: &Digest) -> Result<Vec<Referrer>, Failure> {
        match self.try_tagged(&referrers_tag(subject)).await? {
            Some((_, bytes)) => Ok(each_once(list(&bytes, &referrers_tag(subject))?)),
            None => Ok(Vec::new()),
        }
    }

    async fn try_tagged(&self, tag: &str) -> Result<Option<(Digest, Bytes)>, Failure> {
        let answer = self.get_manifest(self.origin(), tag, tag).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.checked_manifest(answer, None, tag).await.map(Some)
    }
}

fn each_once(mut referrers: Vec<Referrer>) -> Vec<Referrer> {
    let mut seen = HashSet::new();
    referrers.retain(|referrer| seen.insert(referrer.descriptor.digest.clone()));
    referrers
}

fn list(bytes: &[u8], object: &str) -> Result<Vec<Referrer>> {
    #[derive(Deserialize)]
    struct List {
        manifests: Option<Vec<Referrer>>,
    }
    let list: List = serde_json::from_slice(bytes).map_err(|error| {
        let cause = format!("the list of what is attached is none: {error}");
        Error::new(ErrorKind::Protocol, object, cause).hint("tell the registry's operator")
    })?;
    Ok(list.manifests.unwrap_or_default())
}

/// RFC 8288: `<ADDRESS>; rel="next"`.
fn next_page(link: &str, from: &Url) -> Option<Url> {
    link.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            let (name, value) = parameter.trim().split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        };
        parameters.split(';').any(is_next).then(|| from.join(address).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_says() {
        let from: Url = "https://r.example/v2/a/referrers/sha256:00?n=2".parse().unwrap();
        let next = |link: &str| next_page(link, &from).map(String::from);
        let there = Some("https://r.example/v2/a/referrers/sha256:00?last=x&n=2".to_owned());
        assert_eq!(next(r#"</v2/a/referrers/sha256:00?last=x&n=2>; rel="next""#), there);
        assert_eq!(next(r#"<?x>; rel=prev, <?last=x&n=2>; title="t"; REL=next"#), there);
        assert_eq!(next("<//other/b>; rel=next").unwrap(), "https://other/b");
        for link in ["", "<x>", "x; rel=next", "<x; rel=next", "<http://[>; rel=next"] {
            assert_eq!(next(link), None, "{link}");
        }
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        assert_eq!(list(br#"{"manifests":null}"#, "x").unwrap(), []);
        for wrong in ["", "[", r#"{"manifests":[{}]}"#, r#"{"manifests":[{"digest":"../x","size":1}]}"#] {
            assert_eq!(list(wrong.as_bytes(), "x").unwrap_err().kind, ErrorKind::Protocol);
        }
    }
}
