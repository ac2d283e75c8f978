//! The token that a registry asks for (distribution specification, "token authentication"), without a login.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::answer::body_up_to;
use super::endpoint::Actions;
use super::retry::Failure;
use super::web::{Request, Web};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a token service's answer.
const LARGEST_TOKEN: u64 = 1 << 20;

/// What goes into the `Authorization` header, renewed once for all who were refused with the same token.
#[derive(Default)]
pub struct Auth {
    token: Mutex<Token>,
}

#[derive(Clone, Default)]
pub struct Token {
    /// How many came before it.
    generation: u64,
    /// Marked as sensitive, so that no log shows it.
    pub header: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Auth {
    pub async fn token(&self) -> Token {
        self.token.lock().await.clone()
    }

    /// Gets a new token after a 401 with these headers, unless another reader has done so since `refused` was given out.
    pub async fn renew(
        &self,
        web: &Web,
        refused: &Token,
        challenger: &Url,
        headers: &HeaderMap,
        repository: &str,
        actions: Actions,
    ) -> Result<(), Failure> {
        let mut token = self.token.lock().await;
        if token.generation != refused.generation {
            return Ok(());
        }
        let (realm, query) = bearer_challenge(headers, repository, actions)?;
        let mut url: Url = realm.parse().map_err(|_| {
            Error::new(ErrorKind::Protocol, repository, format!("the registry's token service is no address: {realm}"))
        })?;
        url.query_pairs_mut().extend_pairs(query);
        web.targets.check(&url, challenger)?;
        let (answer, _) = web.send(&Request::get(url, HeaderMap::new(), &realm), None).await?;
        let status = answer.status();
        let body = body_up_to(answer, LARGEST_TOKEN, &realm, &web.traffic).await?;
        if !status.is_success() {
            let error = Error::new(ErrorKind::Denied, repository, format!("the token service answers {status}"))
                .hint("the repository may need a login, or not exist");
            return Err(if status.is_server_error() {
                let error = Error { kind: ErrorKind::Unreachable, ..error }.hint("try again later");
                Failure::Passing { error, not_before: None }
            } else {
                Failure::Final(error)
            });
        }
        let text = serde_json::from_slice::<TokenAnswer>(&body)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .ok_or_else(|| Error::new(ErrorKind::Protocol, &realm, "the token service's answer holds no token"))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {text}"))
            .map_err(|_| Error::new(ErrorKind::Protocol, &realm, "the token service's token is no header text"))?;
        header.set_sensitive(true);
        *token = Token { generation: refused.generation.wrapping_add(1), header: Some(header) };
        Ok(())
    }
}

/// The token service's address and the query to send it, from `WWW-Authenticate: Bearer realm=…,service=…,scope=…`.
fn bearer_challenge(
    headers: &HeaderMap,
    repository: &str,
    actions: Actions,
) -> Result<(String, Vec<(&'static str, String)>)> {
    let denied = |cause: &str| {
        Error::new(ErrorKind::Denied, repository, cause.to_owned()).hint("only public repositories can be mounted")
    };
    for text in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            if !challenge.scheme.eq_ignore_ascii_case("Bearer") {
                continue;
            }
            let param = |name: &str| {
                let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            let Some(realm) = param("realm") else { continue };
            let mut query = Vec::new();
            if let Some(service) = param("service") {
                query.push(("service", service));
            }
            query.push((
                "scope",
                param("scope").unwrap_or_else(|| format!("repository:{repository}:{}", actions.as_str())),
            ));
            return Ok((realm, query));
        }
    }
    Err(denied("the registry asks for a login"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(text: &'static str) -> Result<(String, Vec<(&'static str, String)>)> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(text));
        bearer_challenge(&headers, "ign/pastis", Actions::Pull)
    }

    #[test]
    fn the_bearer_challenge_is_found_among_others() {
        let (realm, query) = challenge(
            r#"Basic realm="x", Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
        )
        .unwrap();
        assert_eq!(realm, "https://auth.docker.io/token");
        assert_eq!(query, [("service", "registry.docker.io".into()), ("scope", "repository:a/b:pull".into())]);
        let (_, query) = challenge(r#"Bearer realm="https://r/token""#).unwrap();
        assert_eq!(query, [("scope", "repository:ign/pastis:pull".into())]);
    }

    #[test]
    fn no_bearer_challenge_means_that_a_login_is_needed() {
        for text in [r#"Basic realm="x""#, "", "Bearer", "Bearer service=\"x\"", "=,=, Bearer realm"] {
            assert_eq!(challenge(text).unwrap_err().kind, ErrorKind::Denied, "{text}");
        }
    }
}
