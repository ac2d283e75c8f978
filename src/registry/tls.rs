//! Certificates: whom to trust, what to show, and what is wrong with those of a server.

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore,
    SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use super::transport::{Access, unusable};
use crate::error::Result;

type Chain = Vec<CertificateDer<'static>>;

/// What the user gave, and what lies in `certs.d`.
#[derive(Default)]
pub struct Files {
    authorities: Chain,
    client: Option<(Chain, PrivateKeyDer<'static>)>,
}

impl Files {
    pub fn of(registry: &str, access: &Access) -> Result<Self> {
        let mut files = match folder_of(registry) {
            Some(folder) => Self::in_folder(&folder)?,
            None => Self::default(),
        };
        if let Some(file) = &access.ca_file {
            files.authorities.extend(authorities(file)?);
        }
        match (&access.cert_file, &access.key_file) {
            (Some(certificate), Some(key)) => files.client = Some((certificates(certificate)?, private_key(key)?)),
            (None, None) => {}
            (Some(file), None) => return Err(unusable(file, "a certificate without its key").hint("add --key-file")),
            (None, Some(file)) => return Err(unusable(file, "a key without its certificate").hint("add --cert-file")),
        }
        Ok(files)
    }

    pub fn is_any(&self) -> bool {
        !self.authorities.is_empty() || self.client.is_some()
    }

    /// containers-certs.d(5): `*.crt` are authorities, `NAME.cert` and `NAME.key` a client's certificate.
    fn in_folder(folder: &Path) -> Result<Self> {
        let mut files = Self::default();
        let list = fs::read_dir(folder).map_err(|error| unusable(folder, error).hint("it must be readable for you"))?;
        let mut paths: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => files.authorities.extend(authorities(&path)?),
                Some("cert") if files.client.is_none() => {
                    files.client = Some((certificates(&path)?, private_key(&path.with_extension("key"))?));
                }
                _ => {}
            }
        }
        Ok(files)
    }
}

/// The first that there is, as for podman; docker's is one of them.
fn folder_of(registry: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/certs.d"));
    let folders = own.into_iter().chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]);
    folders.map(|folder| folder.join(registry)).find(|folder| folder.is_dir())
}

fn certificates(file: &Path) -> Result<Chain> {
    let wrong = |cause: String| unusable(file, cause).hint("it must be a file of certificates in PEM format");
    let found: Result<Chain, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found = found.map_err(|error| wrong(format!("cannot be read: {}", plain(&error))))?;
    if found.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(found) }
}

/// Also looked into: a file that is none is named now, not when a server is there.
fn authorities(file: &Path) -> Result<Chain> {
    let chain = certificates(file)?;
    for certificate in &chain {
        RootCertStore::empty().add(certificate.clone()).map_err(|error| {
            unusable(file, format!("it is no certificate of an authority: {error}"))
                .hint("it must be a file of certificates in PEM format")
        })?;
    }
    Ok(chain)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        let cause = format!("there is no key to be had from it: {}", plain(&error));
        unusable(file, cause).hint("it must be a private key in PEM format, without a passphrase")
    })
}

fn plain(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

pub fn config(files: Files, insecure: bool) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let broken = |error: rustls::Error| unusable(Path::new("TLS"), error).hint("check --cert-file and --key-file");
    let verifier =
        Trust { insecure, authorities: files.authorities, provider: provider.clone(), system: OnceLock::new() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match files.client {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(broken)?,
        None => builder.with_no_client_auth(),
    })
}

/// The system's authorities and the user's. The system's are some hundred files: read only when a server is there to be
/// checked.
#[derive(Debug)]
struct Trust {
    insecure: bool,
    authorities: Chain,
    provider: Arc<CryptoProvider>,
    system: OnceLock<Result<Verifier, rustls::Error>>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.insecure {
            return Ok(ServerCertVerified::assertion());
        }
        let load = || Verifier::new_with_extra_roots(self.authorities.iter().cloned(), self.provider.clone());
        match self.system.get_or_init(load) {
            Ok(system) => system.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            Err(error) => Err(error.clone()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn of_tls<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    // What is inside of an io::Error is not among its sources.
    while let Some(inside) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inside;
    }
    error.downcast_ref()
}

/// RFC 7301, 3.2: the server does not speak this version of HTTP.
pub fn is_other_version(error: &(dyn StdError + 'static)) -> bool {
    matches!(of_tls(error), Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// Cause and way out, if this is an error of TLS that does not pass by itself.
pub fn explained(error: &(dyn StdError + 'static)) -> Option<(String, &'static str)> {
    let error = of_tls(error)?;
    const CLOCK: &str = "check the clock of this machine; if it is right, tell the registry's operator";
    let date = |time: &UnixTime| {
        let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(time.as_secs()));
        time.map_or_else(String::new, |time| humantime::format_rfc3339_seconds(time).to_string())
    };
    let said = match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::ExpiredContext { time, not_after } => {
                (format!("its certificate expired at {}, and the clock says {}", date(not_after), date(time)), CLOCK)
            }
            CertificateError::NotValidYetContext { time, not_before } => (
                format!("its certificate is valid from {}, and the clock says {}", date(not_before), date(time)),
                CLOCK,
            ),
            CertificateError::Expired => ("its certificate has expired".to_owned(), CLOCK),
            CertificateError::NotValidYet => ("its certificate is not valid yet".to_owned(), CLOCK),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "its certificate is of an authority that is not trusted here".to_owned(),
                "name the authority's certificate with --ca-file",
            ),
            CertificateError::NotValidForNameContext { expected, presented } => (
                format!("its certificate is for another name, not {}: {}", expected.to_str(), presented.join(", ")),
                "check the address",
            ),
            CertificateError::NotValidForName => {
                ("its certificate is for another name".to_owned(), "check the address")
            }
            other => (format!("its certificate is not good: {other}"), "tell the registry's operator"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            ("cannot connect: the server does not speak TLS there".to_owned(), "use --plain-http if that is meant")
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::HandshakeFailure,
        ) => (
            format!("the server ends TLS: {error}"),
            "it may want a client certificate: --cert-file and --key-file; or speak no TLS 1.2",
        ),
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            ("the server speaks neither HTTP/1.1 nor HTTP/2".to_owned(), "tell the registry's operator")
        }
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) | rustls::Error::InvalidMessage(_) => {
            (format!("TLS does not come about: {error}"), "tell the registry's operator")
        }
        _ => return None,
    };
    Some(said)
}
