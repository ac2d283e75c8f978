//! Whether a login is good, before it is kept.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use tokio::sync::Notify;

use super::answer::status_failure;
use super::auth::Scope;
use super::client::RegistryOptions;
use super::endpoint::Endpoint;
use super::mirrors::place_of_registry;
use super::retry::{Failure, Retry};
use super::traffic::Traffic;
use crate::error::{Error, ErrorKind, Result};

/// The name that logins for a registry are kept by: another one where registries.conf rewrites its location.
pub fn name_of_login(registry: &str) -> Result<String> {
    Ok(place_of_registry(registry, &RegistryOptions::default())?.registry)
}

/// Asks the registry with the login of `options`. False: it wants none, so that nothing is known about it.
pub async fn check_login(registry: &str, options: &RegistryOptions) -> Result<bool> {
    let place = place_of_registry(registry, options)?;
    let (back, traffic) = <(Arc<Notify>, Arc<Traffic>)>::default();
    let endpoint = Endpoint::new(place, options, &traffic, &back)?;
    let retry = Retry::a_few_times_within(options.timeout);
    retry.run(registry, &back, &traffic, || ask(&endpoint, registry)).await
}

async fn ask(endpoint: &Endpoint, registry: &str) -> Result<bool, Failure> {
    let scope = Scope::of(&[]);
    let (answer, _) = endpoint.request(Method::GET, "", HeaderMap::new(), None, &scope, registry).await?;
    match answer.status() {
        StatusCode::OK => Ok(endpoint.is_authorized(&scope).await),
        StatusCode::NOT_FOUND => {
            let error = Error::new(ErrorKind::Protocol, registry, "there is no registry at this address");
            Err(error.hint("check the name: a host and perhaps a port, no repository").into())
        }
        _ => Err(status_failure(registry, &answer)),
    }
}
