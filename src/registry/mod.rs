//! Talks to one registry over HTTP: manifests, configs and ranges of blobs, both ways, with tokens, retries and
//! deadlines. Called by `mount`; implements `blob::BlobSource`; uses the core.

mod answer;
mod auth;
mod bandwidth;
mod breaker;
mod client;
mod connections;
mod credentials;
mod download;
mod endpoint;
mod login;
mod manifest;
mod mirrors;
mod range;
mod referrers;
mod retry;
mod survey;
mod targets;
mod tls;
mod traffic;
mod transport;
mod upload;
mod web;
mod write;

pub use client::{Registry, RegistryOptions};
pub use credentials::{Credential, Secret, Stored, Where};
pub use login::{check_login, name_of_login};
pub use referrers::{List, Referrers};
pub use survey::Finding;
pub use traffic::{Traffic, TrafficCount};
pub use transport::Access;
pub use upload::Progress;
