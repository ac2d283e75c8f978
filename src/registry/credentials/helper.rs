//! Programs that keep logins: `docker-credential-NAME get`, `store` and `erase`
//! (<https://github.com/docker/docker-credential-helpers>). A program that hangs or talks too much is killed.

use std::fmt;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Credential, Secret};
use crate::error::{Error, ErrorKind, Result, printable};

const LONGEST: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const LARGEST: u64 = 1 << 20;
/// In place of a name it says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What all helpers answer that know no such server.
const NOT_FOUND: &str = "credentials not found";

#[derive(Debug)]
pub struct Helper(String);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Login<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    username: &'a str,
    secret: &'a Secret,
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Helper {
    pub fn new(name: &str) -> Self {
        Self(format!("docker-credential-{name}"))
    }

    /// `None` if it knows no login for this server.
    pub async fn get(&self, server: &str) -> Result<Option<Credential>> {
        let Some(answer) = self.run("get", server.as_bytes()).await? else { return Ok(None) };
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| self.failed(format!("its answer for {server} is no login")))?;
        Ok(match answer.username.as_str() {
            _ if answer.secret.reveal().is_empty() => None,
            TOKEN_USER => Some(Credential::IdentityToken(answer.secret)),
            _ => Some(Credential::Password { username: answer.username, password: answer.secret }),
        })
    }

    pub async fn store(&self, server: &str, username: &str, secret: &Secret) -> Result<()> {
        let login = serde_json::to_vec(&Login { server, username, secret }).map_err(|error| self.failed(error))?;
        self.run("store", &login).await.map(|_| ())
    }

    /// False if there was none.
    pub async fn erase(&self, server: &str) -> Result<bool> {
        Ok(self.run("erase", server.as_bytes()).await?.is_some())
    }

    /// `None`: it has no such login.
    async fn run(&self, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut command = Command::new(&self.0);
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // For itself: what it starts is killed with it.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self
                .failed("the credential helper program is not installed")
                .hint("install it, or take it out of credsStore or credHelpers in the file of logins"),
            _ => self.failed(format!("the credential helper program cannot be started: {error}")),
        })?;
        let _group = Group(child.id());
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            if let Some(mut stdin) = stdin {
                // One that answers without reading closes its side.
                let _ = stdin.write_all(input).await;
            }
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(LARGEST + 1).read_to_end(&mut answer).await?;
            }
            if answer.len() as u64 > LARGEST {
                return Ok((None, answer));
            }
            io::Result::Ok((Some(child.wait().await?), answer))
        };
        let (status, answer) = match tokio::time::timeout(LONGEST, talk).await {
            Ok(Ok((Some(status), answer))) => (status, answer),
            Ok(Ok((None, _))) => return Err(self.failed(format!("it answers with more than {LARGEST} bytes"))),
            Ok(Err(error)) => return Err(self.failed(error)),
            Err(_) => {
                let cause = format!("no answer within {}", humantime::format_duration(LONGEST));
                return Err(self.failed(cause).hint("call it by hand: it may wait for a password or a device"));
            }
        };
        if status.success() {
            return Ok(Some(answer));
        }
        let said = String::from_utf8_lossy(&answer);
        if said.to_lowercase().contains(NOT_FOUND) {
            return Ok(None);
        }
        // What a helper says of its failure is for the user, unless it looks like a login.
        let said = if said.contains("Secret") { "" } else { said.trim() };
        Err(self.failed(format!("{status}: {}", printable(said))))
    }

    fn failed(&self, cause: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Denied, self, cause).hint("call it by hand to see what is wrong")
    }
}

/// Ends with all that the program has started.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
