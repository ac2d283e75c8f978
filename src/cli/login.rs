//! `eo-mount login REGISTRY`, `eo-mount logout REGISTRY`: logins where docker and oras read them.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;

use super::access::AccessArguments;
use super::common::{runtime, timeout};
use super::failure::Failure;
use super::logging::{self, Destination};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Reference;
use crate::registry::{RegistryOptions, Secret, Stored, Where, check_login, name_of_login};

/// Log in to a registry, for eo-mount, docker and oras
///
/// The login is checked and kept in $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or ~/.docker/config.json, or by the
/// credential helper that is named there.
#[derive(Debug, Parser)]
pub struct Login {
    /// Host and port
    registry: String,

    #[command(flatten)]
    access: AccessArguments,

    /// Use plain HTTP (always so for localhost and loopback addresses)
    #[arg(long, env = "EO_MOUNT_PLAIN_HTTP", hide_env = true, value_parser = BoolishValueParser::new())]
    plain_http: bool,

    /// Longest time that the registry may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout,
          env = "EO_MOUNT_TIMEOUT", hide_env = true)]
    timeout: Duration,
}

/// Forget the login of a registry
#[derive(Debug, Parser)]
pub struct Logout {
    /// Host and port
    registry: String,
}

impl Login {
    pub fn run(mut self) -> Result<(), Failure> {
        logging::init(0, Destination::Stderr).map_err(|error| Failure::system("log", error))?;
        let registry = registry_of(&self.registry).map_err(|error| Failure::usage(&error))?;
        let username = match self.access.username.take() {
            Some(name) => name,
            None if self.access.password_stdin => {
                return Err(Failure::usage(&nobody("--password-stdin without a name").hint("add --username")));
            }
            None => ask("Username: ", false).map_err(|error| Failure::usage(&error))?,
        };
        let password = match self.access.password()? {
            Some(password) => password,
            None => Secret::new(ask("Password: ", true).map_err(|error| Failure::usage(&error))?),
        };
        self.access.username = Some(username.clone());
        self.access.password = Some(password.clone());
        let options = RegistryOptions {
            plain_http: self.plain_http,
            access: self.access.access()?,
            timeout: self.timeout,
            connections: 1,
            ..RegistryOptions::default()
        };
        let done = runtime()?.block_on(keep(&registry, &username, &password, &options));
        done.map_err(|error| Failure::artifact(&error))
    }
}

async fn keep(registry: &str, username: &str, password: &Secret, options: &RegistryOptions) -> Result<()> {
    if !check_login(registry, options).await? {
        tracing::warn!("{registry}: it answers without a login, so that this one could not be checked");
    }
    let name = name_of_login(registry)?;
    let place = match Stored::new()?.save(&name, username, password).await? {
        Where::File(path) => path.display().to_string(),
        Where::Helper(name) => name,
    };
    let rewritten = if name == registry { String::new() } else { format!(" for {name}, as registries.conf says") };
    say(&format!("Login Succeeded: kept by {place}{rewritten}"));
    Ok(())
}

impl Logout {
    pub fn run(self) -> Result<(), Failure> {
        let registry = registry_of(&self.registry).map_err(|error| Failure::usage(&error))?;
        let erasing = async {
            // One that is blocked by now has no other name.
            let other = name_of_login(&registry).ok().filter(|name| *name != registry);
            let mut erased = Stored::new()?.erase(&registry).await?;
            if let Some(other) = other {
                erased |= Stored::new()?.erase(&other).await?;
            }
            Ok(erased)
        };
        let erased = runtime()?.block_on(erasing).map_err(|error| Failure::artifact(&error))?;
        if !erased {
            let error = Error::new(ErrorKind::NotFound, &registry, "there is no login for it");
            return Err(Failure::artifact(&error.hint("podman keeps others in a file of its own: podman logout")));
        }
        say("Logout Succeeded");
        Ok(())
    }
}

/// As docker takes it: also with a scheme.
fn registry_of(text: &str) -> Result<String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let bare = bare.trim_end_matches('/');
    let bare = if bare == "index.docker.io/v1" { "docker.io" } else { bare };
    match format!("{bare}/a").parse() {
        Ok(Reference::Registry(reference)) if reference.registry == bare => Ok(reference.registry),
        _ => Err(Error::new(ErrorKind::Usage, text, "not a registry")
            .hint("write a host and perhaps a port, as in ghcr.io, docker.io, localhost:5000")),
    }
}

fn nobody(cause: &str) -> Error {
    Error::new(ErrorKind::Usage, "login", cause.to_owned())
}

fn ask(prompt: &str, hidden: bool) -> Result<String> {
    let failed = |error: std::io::Error| nobody(&format!("the terminal cannot be read: {error}"));
    if !std::io::stdin().is_terminal() {
        return Err(nobody("there is no terminal to ask for name and password")
            .hint("give them with --username and --password-stdin"));
    }
    let text = if hidden {
        rpassword::prompt_password(prompt).map_err(failed)?
    } else {
        write!(std::io::stderr(), "{prompt}").map_err(failed)?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(failed)?;
        line
    };
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(nobody("nothing was typed")),
        text => Ok(text.to_owned()),
    }
}

/// Nobody may be listening.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_a_host_and_perhaps_a_port() {
        for (text, registry) in [
            ("ghcr.io", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://r.example/", "r.example"),
            ("https://index.docker.io/v1/", "docker.io"),
        ] {
            assert_eq!(registry_of(text).expect(text), registry);
        }
        for text in ["", "ghcr", "ghcr.io/org", "a b.c", "me:pw@ghcr.io"] {
            assert!(registry_of(text).is_err(), "{text}");
        }
    }
}
