//! `WWW-Authenticate`: what a registry wants.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer(TokenService),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenService {
    /// Its address, as the registry gives it.
    pub realm: String,
    pub service: Option<String>,
}

impl Challenge {
    /// Tokens before passwords, where the registry leaves the choice. Scopes are those that we know we need: a
    /// challenge names one only for a part of the requests.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for text in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
            for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
                let param = |name: &str| {
                    let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("Basic") {
                    basic = Some(Self::Basic);
                } else if challenge.scheme.eq_ignore_ascii_case("Bearer")
                    && let Some(realm) = param("realm")
                {
                    return Some(Self::Bearer(TokenService { realm, service: param("service") }));
                }
            }
        }
        basic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn challenge(text: &'static str) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(text));
        Challenge::of(&headers)
    }

    #[test]
    fn the_bearer_challenge_is_found_among_others() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer(TokenService { realm: realm.to_owned(), service: service.map(str::to_owned) }))
        };
        let both = challenge(
            r#"Basic realm="x", Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
        );
        assert_eq!(both, bearer("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(challenge(r#"Bearer realm="https://r/token""#), bearer("https://r/token", None));
        assert_eq!(challenge(r#"basic realm="x""#), Some(Challenge::Basic));
    }

    #[test]
    fn what_is_no_challenge_is_none() {
        for text in ["", "Bearer", "Bearer service=\"x\"", "=,=, Bearer realm", "Negotiate"] {
            assert_eq!(challenge(text), None, "{text}");
        }
    }
}
