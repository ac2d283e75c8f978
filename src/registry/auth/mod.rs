//! What goes into the `Authorization` header: got once for all who wait, renewed before it expires and when the
//! registry refuses it, with logins that are read anew then.

mod challenge;
mod scope;
mod token;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub use scope::Scope;

use super::credentials::{Credential, Credentials, Found};
use super::endpoint::Base;
use super::retry::Failure;
use super::web::Web;
use crate::error::{Error, ErrorKind, Result};
use challenge::Challenge;

/// After a refusal: how soon files and helpers are looked into again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// After a refusal: how soon the same login is sent again. Some registries lock who tries too often.
const SEND_AGAIN: Duration = Duration::from_secs(10);
/// Bytes of a challenge that nobody understands, in the error.
const LONGEST_QUOTE: usize = 200;

/// Of one repository of one registry.
pub struct Auth {
    /// As the user writes it, and as logins are kept.
    registry: String,
    repository: String,
    /// Where the registry itself is.
    base: Arc<Base>,
    credentials: Credentials,
    web: Arc<Web>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the registry said last that it wants.
    challenge: Option<Challenge>,
    grants: HashMap<Scope, Grant>,
    generation: u64,
    /// Of passwords that the registry itself takes: of no scope.
    refusals: HashMap<Scope, Refusal>,
    /// When logins were read last because of a 403.
    looked: Option<Instant>,
}

/// What the registry may be sent for one scope.
#[derive(Clone)]
struct Grant {
    generation: u64,
    header: HeaderValue,
    login: Option<Found>,
    expires: Option<Expiry>,
}

#[derive(Clone, Copy)]
struct Expiry {
    renew: Instant,
    end: Instant,
}

struct Refusal {
    error: Error,
    login: Option<Found>,
    read_again: Instant,
    send_again: Instant,
}

/// For one request; [`Auth::after_refusal`] wants it back.
#[derive(Clone, Default)]
pub struct Authorization {
    /// Marked as sensitive, so that no log shows it.
    pub header: Option<HeaderValue>,
    generation: u64,
    again: bool,
}

impl Auth {
    pub fn new(registry: &str, repository: &str, base: Arc<Base>, credentials: Credentials, web: Arc<Web>) -> Self {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        Self { registry, repository, base, credentials, web, state: Mutex::default() }
    }

    /// For a request of this scope; nothing as long as the registry has not asked for anything.
    pub async fn authorization(&self, scope: &Scope) -> Result<Authorization, Failure> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let current = state.grants.get(scope);
        if let Some(grant) = current.filter(|grant| grant.expires.is_none_or(|expires| now < expires.renew)) {
            return Ok(grant.authorization(false));
        }
        // For requests that are answered while the token service is not.
        let still_good = current.filter(|grant| grant.expires.is_some_and(|expires| now < expires.end)).cloned();
        let Some(challenge) = state.challenge.clone() else { return Ok(Authorization::default()) };
        match (self.obtain(&mut state, scope, &challenge).await, still_good) {
            (Ok(grant), _) => Ok(grant.authorization(false)),
            (Err(Failure::Passing { error, .. } | Failure::Dead(error)), Some(grant)) => {
                tracing::debug!("{error}; going on with the old token");
                Ok(grant.authorization(false))
            }
            (Err(failure), _) => Err(failure),
        }
    }

    /// After a 401 or 403 of the registry itself: what to send instead, if there is anything. For a second refusal of
    /// one request there is not.
    ///
    /// # Errors
    /// A 401 that no login helps against.
    pub async fn after_refusal(
        &self,
        scope: &Scope,
        refused: &Authorization,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Authorization>, Failure> {
        let mut state = self.state.lock().await;
        let grant = state.grants.get(scope).cloned();
        if let Some(newer) = grant.as_ref().filter(|grant| grant.generation != refused.generation && !refused.again) {
            return Ok(Some(newer.authorization(true)));
        }
        let grant = grant.filter(|grant| grant.generation == refused.generation);
        let login = grant.as_ref().and_then(|grant| grant.login.as_ref());
        let error = self.refuses(login, status);
        if status != StatusCode::UNAUTHORIZED {
            // What was sent may be good for other requests: nothing changes unless there is another login.
            if refused.again || !state.may_look() || self.find().await.is_ok_and(|found| found.as_ref() == login) {
                return Ok(None);
            }
        } else if refused.again {
            if grant.is_some() {
                state.refuse(scope, &error, login, READ_AGAIN);
                state.grants.remove(scope);
            }
            return Err(error.into());
        } else if grant.is_some() && matches!(state.challenge, Some(Challenge::Basic)) {
            // Only another login helps; there may be one by now.
            state.refuse(scope, &error, login, Duration::ZERO);
        }
        state.grants.remove(scope);
        if let Some(challenge) = Challenge::of(headers) {
            state.challenge = Some(challenge);
        }
        let Some(challenge) = state.challenge.clone() else {
            return if status == StatusCode::UNAUTHORIZED { Err(self.wants_unknown(headers).into()) } else { Ok(None) };
        };
        let grant = self.obtain(&mut state, scope, &challenge).await?;
        Ok(Some(grant.authorization(true)))
    }

    async fn find(&self) -> Result<Option<Found>> {
        self.credentials.find(&self.registry, &self.repository).await
    }

    async fn obtain(&self, state: &mut State, scope: &Scope, challenge: &Challenge) -> Result<Grant, Failure> {
        let now = Instant::now();
        if let Some(refusal) = state.refusal(scope).filter(|refusal| now < refusal.read_again) {
            return Err(refusal.error.clone().into());
        }
        let login = match self.find().await {
            Ok(login) => login,
            Err(error) => {
                state.refuse(scope, &error, None, READ_AGAIN);
                return Err(error.into());
            }
        };
        if let Some(refusal) = state.refusal(scope)
            && refusal.login == login
            && now < refusal.send_again
        {
            refusal.read_again = now + READ_AGAIN;
            return Err(refusal.error.clone().into());
        }
        let (text, lifetime) = match (challenge, login.as_ref().map(|login| &login.credential)) {
            (_, Some(Credential::RegistryToken(token))) => (format!("Bearer {}", token.reveal()), None),
            (Challenge::Basic, Some(Credential::Password { username, password })) => {
                (basic(username, password.reveal()), None)
            }
            (Challenge::Basic, Some(Credential::IdentityToken(_))) => {
                let error = Error::new(ErrorKind::Denied, &self.registry, "it wants a password, not an identity token");
                return Err(error.hint(self.login_hint()).into());
            }
            (Challenge::Basic, None) => {
                let error = self.wants_login();
                state.refuse(scope, &error, None, READ_AGAIN);
                return Err(error.into());
            }
            (Challenge::Bearer(service), _) => match self.ask(service, scope, login.as_ref()).await {
                Ok(token) => (format!("Bearer {}", token.text.reveal()), Some(token.lifetime)),
                Err(failure) => {
                    if let Failure::Final(error) = &failure {
                        state.refuse(scope, error, login.as_ref(), READ_AGAIN);
                    }
                    return Err(failure);
                }
            },
        };
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| Error::new(ErrorKind::Protocol, &self.registry, "the token is no header text"))
            .map_err(|error| error.hint("tell the registry's operator"))?;
        header.set_sensitive(true);
        state.refusals.retain(|_, refusal| refusal.login == login);
        state.generation = state.generation.wrapping_add(1);
        let expires = lifetime.map(|lifetime| Expiry { renew: now + lifetime - margin(lifetime), end: now + lifetime });
        let grant = Grant { generation: state.generation, header, login, expires };
        state.grants.insert(scope.clone(), grant.clone());
        Ok(grant)
    }

    /// Not in a way that is understood.
    fn wants_unknown(&self, headers: &HeaderMap) -> Error {
        let Some(said) = headers.get(WWW_AUTHENTICATE).filter(|said| !said.is_empty()) else {
            return self.wants_login();
        };
        let plain = |&byte: &u8| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' };
        let mut quote: String = said.as_bytes().iter().take(LONGEST_QUOTE).map(plain).collect();
        if said.len() > LONGEST_QUOTE {
            quote.push('…');
        }
        let cause = format!("the registry asks for a login in another way than Basic and Bearer: `{quote}`");
        Error::new(ErrorKind::Unsupported, &self.registry, cause).hint("tell the registry's operator")
    }

    fn wants_login(&self) -> Error {
        Error::new(ErrorKind::Denied, &self.registry, "the registry asks for a login").hint(self.login_hint())
    }

    fn refuses(&self, login: Option<&Found>, status: StatusCode) -> Error {
        let cause = match login {
            Some(login) => format!("the registry refuses {login}: {status}"),
            None => format!("the registry gives nothing without a login: {status}"),
        };
        Error::new(ErrorKind::Denied, &self.registry, cause).hint(self.login_hint())
    }

    fn login_hint(&self) -> String {
        format!("log in: eo-mount login {}", self.registry)
    }
}

impl State {
    fn refuse(&mut self, scope: &Scope, error: &Error, login: Option<&Found>, read_again: Duration) {
        let now = Instant::now();
        let refusal = Refusal {
            error: error.clone(),
            login: login.cloned(),
            read_again: now + read_again,
            send_again: now + SEND_AGAIN,
        };
        self.refusals.insert(self.concerned(scope), refusal);
    }

    fn refusal(&mut self, scope: &Scope) -> Option<&mut Refusal> {
        self.refusals.get_mut(&self.concerned(scope))
    }

    /// A token service says of each scope whether it may be; a registry that takes passwords, of the password.
    fn concerned(&self, scope: &Scope) -> Scope {
        match self.challenge {
            Some(Challenge::Bearer(_)) => scope.clone(),
            _ => Scope::of(&[]),
        }
    }

    /// Whether logins may be read for a 403: not for each of many.
    fn may_look(&mut self) -> bool {
        let now = Instant::now();
        let may = self.looked.is_none_or(|looked| now >= looked + READ_AGAIN);
        if may {
            self.looked = Some(now);
        }
        may
    }
}

impl Grant {
    fn authorization(&self, again: bool) -> Authorization {
        Authorization { header: Some(self.header.clone()), generation: self.generation, again }
    }
}

/// How long before its end a token is renewed.
fn margin(lifetime: Duration) -> Duration {
    (lifetime / 5).min(Duration::from_secs(30))
}

/// RFC 7617, in UTF-8.
fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}
