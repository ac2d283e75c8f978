//! Who may come in: passwords at the registry itself, or tokens from its token service.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::{Body as _, Incoming};

use super::answer::Answer;
use super::request::Request;

/// What the registry asks of everybody.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// The password with each request, and no tokens.
    pub basic: bool,
    /// Name and password; nobody: everybody gets a token.
    pub users: Vec<(String, String)>,
    /// Are exchanged for tokens by POST.
    pub identity_tokens: Vec<String>,
    /// Seconds, told with the token, after which it is worth nothing; else 300 and for ever.
    pub expires_in: Option<u64>,
    /// The token's lifetime is not told.
    pub untold: bool,
    /// Another address of the token service than `/token` here.
    pub realm: Option<String>,
    /// The token is called `access_token`.
    pub oauth: bool,
}

#[derive(Default)]
pub(super) struct Guarded {
    pub gate: Gate,
    ends: HashMap<String, Instant>,
}

impl Guarded {
    pub fn new(gate: Gate) -> Self {
        Self { gate, ends: HashMap::new() }
    }

    pub fn is_over(&self, token: &str) -> bool {
        self.ends.get(token).is_some_and(|end| Instant::now() > *end)
    }

    /// Whether this request comes with a password that is right.
    pub fn knows(&self, request: &Request) -> bool {
        let said = request.header("authorization").and_then(|value| value.strip_prefix("Basic "));
        let encoded = |(name, password): &(String, String)| STANDARD.encode(format!("{name}:{password}"));
        self.gate.users.iter().any(|user| Some(encoded(user).as_str()) == said)
    }

    /// A refusal at the token service, or the answer that holds this token.
    pub fn answer(&mut self, request: &Request, token: &str) -> Answer {
        let exchanged = |known: &String| request.body.contains(&format!("refresh_token={known}"));
        let may = match request.method.as_str() {
            "POST" => self.gate.identity_tokens.iter().any(exchanged),
            _ => self.gate.users.is_empty() || self.knows(request),
        };
        if !may {
            return Answer::error(401, "UNAUTHORIZED", "incorrect username or password");
        }
        if let Some(seconds) = self.gate.expires_in {
            self.ends.insert(token.to_owned(), Instant::now() + Duration::from_secs(seconds));
        }
        let name = if self.gate.oauth { "access_token" } else { "token" };
        let mut body = serde_json::json!({name: token});
        if !self.gate.untold {
            body["expires_in"] = self.gate.expires_in.unwrap_or(300).into();
        }
        Answer::text(200, "application/json", body.to_string())
    }
}

/// As text; what goes on for longer is cut.
pub(super) async fn text_of(mut body: Incoming) -> String {
    let mut text = Vec::new();
    while text.len() < 1 << 20 {
        match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}
