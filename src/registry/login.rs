//! Whether a login is good, before it is kept.

use reqwest::header::AUTHORIZATION;
use reqwest::{StatusCode, redirect};

use super::auth::{Auth, Scope};
use super::client::{RegistryOptions, status_failure, transport_failure};
use super::credentials::Credentials;
use super::retry::{Failure, Retry};
use super::transport::{self, Transport};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::RegistryReference;

/// Asks the registry with the login of `options`. False: it wants none, so that nothing is known about it.
pub async fn check_login(registry: &str, options: &RegistryOptions) -> Result<bool> {
    let reference =
        RegistryReference { registry: registry.to_owned(), repository: String::new(), tag: None, digest: None };
    let transport = Transport::new(&reference, options)?;
    let scheme = if transport.plain_http() { "http" } else { "https" };
    let url = format!("{scheme}://{}/v2/", reference.host());
    let http = transport.client(redirect::Policy::none())?;
    let auth = Auth::new(
        registry,
        "",
        transport.plain_http(),
        Credentials::new(options.access.login.clone()),
        transport.client(transport::at_home())?,
        std::sync::Arc::default(),
    );
    let mut retry = Retry::a_few_times_within(options.timeout);
    loop {
        let attempt = ask(&http, &url, &auth, registry);
        let failure = match tokio::time::timeout_at(retry.deadline(), attempt).await {
            Ok(Ok(asked)) => return Ok(asked),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(retry.timed_out(registry)),
        };
        retry.pause(failure).await?;
    }
}

async fn ask(http: &reqwest::Client, url: &str, auth: &Auth, registry: &str) -> Result<bool, Failure> {
    let scope = Scope::of(&[]);
    let mut authorization = auth.authorization(&scope).await?;
    loop {
        let mut request = http.get(url);
        if let Some(header) = &authorization.header {
            request = request.header(AUTHORIZATION, header);
        }
        let answer = request.send().await.map_err(|error| transport_failure(registry, &error))?;
        match answer.status() {
            StatusCode::OK => return Ok(authorization.header.is_some()),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                match auth.after_refusal(&scope, &authorization, status, answer.headers()).await? {
                    Some(other) => authorization = other,
                    None => return Err(status_failure(registry, &answer)),
                }
            }
            StatusCode::NOT_FOUND => {
                let error = Error::new(ErrorKind::Protocol, registry, "there is no registry at this address");
                return Err(error.hint("check the name: a host and perhaps a port, no repository").into());
            }
            _ => return Err(status_failure(registry, &answer)),
        }
    }
}
