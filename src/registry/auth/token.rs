//! Asking a token service (distribution, "token authentication" and "OAuth2 token authentication").

use std::time::Duration;

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::challenge::TokenService;
use super::scope::Scope;
use super::{Auth, basic};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::client::{body_up_to, transport_failure};
use crate::registry::credentials::{Credential, Found, Secret};
use crate::registry::retry::Failure;

/// Bytes of a token service's answer.
const LARGEST: u64 = 1 << 20;
/// The specification's, for tokens that do not say; it is also what no token should have less of.
const LIFETIME: u64 = 60;
/// A token that says more is renewed all the same.
const LONGEST_LIFETIME: u64 = 24 * 3600;

pub(super) struct Token {
    pub text: Secret,
    pub lifetime: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) async fn ask(
        &self,
        service: &TokenService,
        scope: &Scope,
        login: Option<&Found>,
    ) -> Result<Token, Failure> {
        let url = self.address(&service.realm)?;
        // Without the query, which is somebody else's text.
        let object = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let request = match login.map(|login| &login.credential) {
            Some(Credential::IdentityToken(token)) => {
                let scope = scope.parts().join(" ");
                let mut form = vec![("grant_type", "refresh_token"), ("client_id", "eo-mount")];
                form.extend(service.service.as_deref().map(|service| ("service", service)));
                form.extend([("scope", scope.as_str()), ("refresh_token", token.reveal())]);
                self.http.post(url).form(&form)
            }
            other => {
                let mut url = url;
                {
                    let mut query = url.query_pairs_mut();
                    query.extend_pairs(service.service.as_deref().map(|service| ("service", service)));
                    query.extend_pairs(scope.parts().iter().map(|part| ("scope", part)));
                }
                let request = self.http.get(url);
                match other {
                    Some(Credential::Password { username, password }) => {
                        request.header(reqwest::header::AUTHORIZATION, sensitive(&basic(username, password.reveal()))?)
                    }
                    _ => request,
                }
            }
        };
        self.traffic.request();
        let answer = request.send().await.map_err(|error| transport_failure(&object, &error))?;
        let status = answer.status();
        let body = body_up_to(answer, LARGEST, &object, &self.traffic).await?;
        if !status.is_success() {
            return Err(self.refused_by_service(status, login));
        }
        let wrong = || Error::new(ErrorKind::Protocol, &object, "the token service's answer holds no token");
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| wrong())?;
        let text = answer.token.or(answer.access_token).filter(|token| !token.reveal().is_empty()).ok_or_else(wrong)?;
        let lifetime = answer.expires_in.unwrap_or(LIFETIME).clamp(1, LONGEST_LIFETIME);
        Ok(Token { text, lifetime: Duration::from_secs(lifetime) })
    }

    /// Where the registry sends us with a login: not from TLS to plain HTTP, and nowhere but to a web server.
    fn address(&self, realm: &str) -> Result<Url> {
        let refused =
            |cause: String| Error::new(ErrorKind::Protocol, &self.registry, cause).hint("tell the registry's operator");
        let url: Url =
            realm.parse().map_err(|_| refused(format!("the registry's token service is no address: {realm}")))?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain_http => {}
            "http" => return Err(refused("the registry's token service is spoken to without TLS".to_owned())),
            _ => return Err(refused(format!("the registry's token service is no web server: {realm}"))),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("the registry's token service comes with a login in its address".to_owned()));
        }
        Ok(url)
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

fn sensitive(text: &str) -> Result<reqwest::header::HeaderValue> {
    let mut header = reqwest::header::HeaderValue::from_str(text)
        .map_err(|_| Error::new(ErrorKind::Usage, "login", "it is no header text"))?;
    header.set_sensitive(true);
    Ok(header)
}
