//! Asking a token service (distribution, "token authentication" and "OAuth2 token authentication").

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::challenge::TokenService;
use super::scope::Scope;
use super::{Auth, basic};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::answer::body_up_to;
use crate::registry::credentials::{Credential, Found, Secret};
use crate::registry::retry::Failure;
use crate::registry::web::Request;

/// Bytes of a token service's answer.
const LARGEST: u64 = 1 << 20;
/// The specification's, for tokens that do not say; it is also what no token should have less of.
const LIFETIME: u64 = 60;
/// A token that says more is renewed all the same.
const LONGEST_LIFETIME: u64 = 24 * 3600;

const FORM: &str = "application/x-www-form-urlencoded";

pub(super) struct Token {
    pub text: Secret,
    pub lifetime: Duration,
}

impl Token {
    fn read(body: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(body).ok()?;
        let mut texts = [answer.token, answer.access_token].into_iter().flatten();
        let text = texts.find(|token| !token.reveal().is_empty())?;
        let said = answer.expires_in.as_f64().or_else(|| answer.expires_in.as_str()?.parse().ok());
        let lifetime = said.map_or(LIFETIME, |seconds| seconds as u64).clamp(1, LONGEST_LIFETIME);
        Some(Self { text, lifetime: Duration::from_secs(lifetime) })
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    /// Some services write it as text, or with a fraction.
    #[serde(default)]
    expires_in: Value,
}

impl Auth {
    pub(super) async fn ask(
        &self,
        service: &TokenService,
        scope: &Scope,
        login: Option<&Found>,
    ) -> Result<Token, Failure> {
        let url = address(&service.realm, self.base.url(), &self.registry)?;
        self.web.targets.check(&url, self.base.url())?;
        // Without the query, which is somebody else's text.
        let object = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let (answer, _) = match login.map(|login| &login.credential) {
            Some(Credential::IdentityToken(token)) => {
                let scope = scope.parts().join(" ");
                let mut form = vec![("grant_type", "refresh_token"), ("client_id", "eo-mount")];
                form.extend(service.service.as_deref().map(|service| ("service", service)));
                form.extend([("scope", scope.as_str()), ("refresh_token", token.reveal())]);
                let mut encoded = url.clone();
                encoded.query_pairs_mut().clear().extend_pairs(form);
                let form = encoded.query().unwrap_or_default().to_owned();
                let body = || reqwest::Body::from(form.clone());
                let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(FORM))]);
                let (method, object) = (Method::POST, object.as_str());
                let request = Request { method, url, headers, body: Some(&body), stays: true, object };
                self.web.send(&request, None).await?
            }
            other => {
                let mut url = url;
                {
                    let mut query = url.query_pairs_mut();
                    query.extend_pairs(service.service.as_deref().map(|service| ("service", service)));
                    query.extend_pairs(scope.parts().iter().map(|part| ("scope", part)));
                }
                let authorization = match other {
                    Some(Credential::Password { username, password }) => {
                        Some(sensitive(&basic(username, password.reveal()))?)
                    }
                    _ => None,
                };
                let request = Request { stays: true, ..Request::get(url, HeaderMap::new(), &object) };
                self.web.send(&request, authorization.as_ref()).await?
            }
        };
        let status = answer.status();
        let body = body_up_to(answer, LARGEST, &object, &self.web.traffic).await?;
        if !status.is_success() {
            return Err(self.refused_by_service(status, login));
        }
        Token::read(&body).ok_or_else(|| {
            let error = Error::new(ErrorKind::Protocol, &object, "the token service's answer holds no token");
            error.hint("tell the registry's operator").into()
        })
    }

    fn refused_by_service(&self, status: StatusCode, login: Option<&Found>) -> Failure {
        let error = |kind, cause| Error::new(kind, &self.registry, cause);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let error = error(ErrorKind::Unreachable, format!("the token service answers {status}"));
            return Failure::Passing { error: error.hint("try again later"), not_before: None };
        }
        let cause = match login {
            Some(login) => format!("the token service refuses {login}: {status}"),
            None => format!("the token service gives nothing without a login: {status}"),
        };
        let hint = format!("{}; the repository may also not exist", self.login_hint());
        Failure::Final(error(ErrorKind::Denied, cause).hint(hint))
    }
}

/// Where the registry sends us with a login: not from TLS to plain HTTP, and nowhere but to a web server.
fn address(realm: &str, base: &Url, registry: &str) -> Result<Url> {
    let refused = |cause: String| Error::new(ErrorKind::Protocol, registry, cause).hint("tell the registry's operator");
    let url: Url =
        realm.parse().map_err(|_| refused(format!("the registry's token service is no address: {realm}")))?;
    match url.scheme() {
        "https" => {}
        "http" if base.scheme() == "http" => {}
        "http" => return Err(refused("the registry's token service is spoken to without TLS".to_owned())),
        _ => return Err(refused(format!("the registry's token service is no web server: {realm}"))),
    }
    Ok(url)
}

fn sensitive(text: &str) -> Result<HeaderValue> {
    let mut header =
        HeaderValue::from_str(text).map_err(|_| Error::new(ErrorKind::Usage, "login", "it is no header text"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_however_their_life_is_written() {
        for (said, seconds) in [
            ("300", 300),
            ("300.5", 300),
            ("\"300\"", 300),
            ("null", 60),
            ("\"soon\"", 60),
            ("[]", 60),
            ("0", 1),
            ("-5", 1),
            ("18446744073709551616", 24 * 3600),
            ("\"NaN\"", 1),
            ("\"inf\"", 24 * 3600),
        ] {
            let body = format!(r#"{{"token":"","access_token":"t","expires_in":{said}}}"#);
            let token = Token::read(body.as_bytes()).expect(said);
            assert_eq!((token.text.reveal(), token.lifetime), ("t", Duration::from_secs(seconds)), "{said}");
        }
        for body in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":5}"#, r#"{"token":"a","token":"b"}"#, "<html>"] {
            assert!(Token::read(body.as_bytes()).is_none(), "{body}");
        }
        assert!(Token::read("[".repeat(1 << 20).as_bytes()).is_none());
    }

    #[test]
    fn a_login_goes_neither_to_plain_http_nor_to_files() {
        let address = |realm, base: &str| address(realm, &base.parse().unwrap(), "r.example");
        assert!(address("https://auth.example/token?x=y", "https://r.example/v2/a/").is_ok());
        assert!(address("http://auth.example/token", "http://r.example/v2/a/").is_ok());
        for realm in ["http://auth.example/token", "file:///etc/passwd", "token", ""] {
            assert_eq!(address(realm, "https://r.example/v2/a/").unwrap_err().kind, ErrorKind::Protocol, "{realm}");
        }
    }
}
