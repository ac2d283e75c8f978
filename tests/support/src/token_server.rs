//! A token server as the distribution token specification describes it, for a registry that asks for its tokens.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/> and `…/auth/jwt/`.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::real_registry::{PASSWORD, USERNAME};
use crate::run::run;
use crate::server_thread::ServerThread;

const SERVICE: &str = "registry of a test";
const ISSUER: &str = "token server of a test";
/// What a registry allows for clocks that differ: `Leeway` in distribution's `registry/auth/token/token.go`.
const LEEWAY: u64 = 60;

/// Anybody may pull, and who knows the password may push. Gone when dropped.
pub struct TokenServer {
    address: String,
    state: Arc<State>,
    _thread: ServerThread,
}

struct State {
    /// `key`, and `certificate`, which the registry trusts.
    directory: TempDir,
    now: Mutex<Now>,
}

struct Now {
    lifetime: Duration,
    says_lifetime: bool,
    refused: Option<String>,
    asked: Vec<Asked>,
}

/// A token that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `repository:pastis:pull`, for instance.
    pub scopes: Vec<String>,
    /// Who asked; nobody in particular without a name.
    pub user: Option<String>,
    pub status: u16,
}

impl TokenServer {
    /// Its tokens live for five minutes, and say so.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = ["req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=A token server"];
        openssl(directory.path(), &[&first[..], &["-keyout", "key", "-out", "certificate"]].concat());
        let now = Now { lifetime: Duration::from_secs(300), says_lifetime: true, refused: None, asked: Vec::new() };
        let state = Arc::new(State { directory, now: Mutex::new(now) });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on the loopback interface");
        listener.set_nonblocking(true).expect("a socket can be watched");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let for_thread = Arc::clone(&state);
        let thread = ServerThread::start("token server", move || serve(listener, for_thread));
        Self { address, state, _thread: thread }
    }

    /// From now on tokens are refused after this time, and `expires_in` says so, or nothing does.
    pub fn set_lifetime(&self, lifetime: Duration, says_lifetime: bool) {
        let mut now = self.state.now();
        (now.lifetime, now.says_lifetime) = (lifetime, says_lifetime);
    }

    /// Nobody gets a token for this repository any more.
    pub fn refuse(&self, repository: &str) {
        self.state.now().refused = Some(format!("repository:{repository}:"));
    }

    /// All tokens that were asked for so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.now().asked.clone()
    }

    /// What a registry has below `auth: token:`.
    pub(crate) fn for_registry(&self) -> Value {
        json!({
            "realm": format!("http://{}/token", self.address),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.state.directory.path().join("certificate")
        })
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket can be watched");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let service = service_fn(|request| std::future::ready(state.answer(&request)));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

impl State {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request<Incoming>) -> hyper::http::Result<Response<String>> {
        let mut now = self.now();
        let login = request.headers().get("authorization").map(|value| basic(value.as_bytes()));
        let right = login == Some(Some((USERNAME.to_owned(), PASSWORD.to_owned())));
        let scopes: Vec<String> = scopes(request.uri().query().unwrap_or(""));
        let status = match request.method().as_str() {
            // oras and docker then do without OAuth2.
            "POST" => 404,
            _ if login.is_some() && !right => 401,
            _ if now.refused.as_ref().is_some_and(|refused| scopes.iter().any(|scope| scope.starts_with(refused))) => {
                403
            }
            _ => 200,
        };
        let user = login.map(|login| login.map(|(name, _)| name).unwrap_or_default());
        now.asked.push(Asked { scopes: scopes.clone(), user, status });
        let mut body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "wrong name or password"}]});
        if status == 200 {
            let access: Vec<Value> = scopes.iter().filter_map(|scope| grant(scope, right)).collect();
            body = json!({"token": self.token(&now, right, access)});
            if now.says_lifetime {
                body["expires_in"] = json!(now.lifetime.as_secs());
            }
        }
        drop(now);
        Response::builder().status(status).header("Content-Type", "application/json").body(body.to_string())
    }

    /// RFC 7519, signed as RS256, with the certificate of the key in its head.
    fn token(&self, now: &Now, known: bool, access: Vec<Value>) -> String {
        let pem = std::fs::read_to_string(self.directory.path().join("certificate")).expect("one's own certificate");
        let chain: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
        let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [chain]});
        let claims = json!({
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": if known { USERNAME } else { "" },
            "iat": since,
            "nbf": since - LEEWAY,
            "exp": since - LEEWAY + now.lifetime.as_secs(),
            "jti": format!("token {}", now.asked.len()),
            "access": access
        });
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(head), part(claims));
        std::fs::write(self.directory.path().join("text"), &text).expect("a temporary directory can be written");
        let signature = openssl(self.directory.path(), &["dgst", "-sha256", "-sign", "key", "text"]);
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(directory);
    run(&mut command, Duration::from_secs(60)).expect_success("openssl").stdout
}

/// Name and password of an `Authorization: Basic …`.
fn basic(header: &[u8]) -> Option<(String, String)> {
    let encoded = header.strip_prefix(b"Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// Several in one parameter, or a parameter each.
fn scopes(query: &str) -> Vec<String> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).map(decoded);
    values.flat_map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Percent signs and pluses resolved.
fn decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let mut text = parts.next().unwrap_or("").replace('+', " ");
    for part in parts {
        let (hex, rest) = part.split_at(part.len().min(2));
        text.push(u8::from_str_radix(hex, 16).map_or('?', char::from));
        text.push_str(&rest.replace('+', " "));
    }
    text
}

/// What a token says of a scope: `repository:pastis:pull,push`.
fn grant(scope: &str, all: bool) -> Option<Value> {
    let (rest, actions) = scope.rsplit_once(':')?;
    let (kind, name) = rest.split_once(':')?;
    let actions: Vec<&str> = actions.split(',').filter(|&action| all || action == "pull").collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}
