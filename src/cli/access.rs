//! Options about who asks a registry, and by which certificates.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::failure::Failure;
use crate::error::{Error, ErrorKind};
use crate::registry::{Access, Credential, Secret};

/// Not an option: everybody on the machine would see it.
pub const PASSWORD_VARIABLE: &str = "EO_MOUNT_PASSWORD";
/// Bytes.
const LONGEST_PASSWORD: u64 = 64 << 10;

#[derive(Debug, Args)]
pub struct AccessArguments {
    /// Log in as this user [default: as docker, podman or eo-mount login did]
    #[arg(short, long, value_name = "NAME", env = "EO_MOUNT_USERNAME", hide_env = true)]
    pub username: Option<String>,

    /// Read the password from standard input [default: $EO_MOUNT_PASSWORD]
    #[arg(long, env = "EO_MOUNT_PASSWORD_STDIN", hide_env = true, value_parser = BoolishValueParser::new())]
    pub password_stdin: bool,

    /// Trust the certificates in this file, too (PEM)
    #[arg(long, value_name = "FILE", env = "EO_MOUNT_CA_FILE", hide_env = true)]
    pub ca_file: Option<PathBuf>,

    /// Show this certificate to the registry (PEM)
    #[arg(long, value_name = "FILE", env = "EO_MOUNT_CERT_FILE", hide_env = true)]
    pub cert_file: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "EO_MOUNT_KEY_FILE", hide_env = true)]
    pub key_file: Option<PathBuf>,

    /// Do not check the registry's certificate
    #[arg(long, env = "EO_MOUNT_INSECURE", hide_env = true, value_parser = BoolishValueParser::new())]
    pub insecure: bool,

    /// What another process has read already.
    #[arg(skip)]
    pub password: Option<Secret>,
}

impl AccessArguments {
    pub fn access(&self) -> Result<Access, Failure> {
        let usage = |cause: &str, hint: &str| {
            Failure::usage(&Error::new(ErrorKind::Usage, "login", cause.to_owned()).hint(hint))
        };
        let login = match (self.username.clone(), self.password()?) {
            (Some(username), Some(password)) => Some(Credential::Password { username, password }),
            (None, None) => None,
            (Some(_), None) => {
                let hint = format!("give it with --password-stdin or {PASSWORD_VARIABLE}, or use eo-mount login");
                return Err(usage("--username without a password", &hint));
            }
            (None, Some(_)) => return Err(usage("a password without a name", "add --username")),
        };
        Ok(Access {
            login,
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            insecure: self.insecure,
        })
    }

    /// From standard input or the environment.
    pub fn password(&self) -> Result<Option<Secret>, Failure> {
        if self.password.is_some() {
            return Ok(self.password.clone());
        }
        let unusable = |cause: String| Failure::usage(&Error::new(ErrorKind::Usage, "password", cause));
        if self.password_stdin {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(LONGEST_PASSWORD).read_to_string(&mut text);
            read.map_err(|error| unusable(format!("standard input cannot be read: {error}")))?;
            let text = text.trim_end_matches(['\n', '\r']);
            if text.is_empty() {
                return Err(unusable("standard input is empty".to_owned()));
            }
            return Ok(Some(Secret::new(text)));
        }
        match std::env::var(PASSWORD_VARIABLE) {
            Ok(text) if !text.is_empty() => Ok(Some(Secret::new(text))),
            Err(std::env::VarError::NotUnicode(_)) => Err(unusable(format!("{PASSWORD_VARIABLE} is no UTF-8"))),
            _ => Ok(None),
        }
    }
}
