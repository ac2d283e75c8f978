//! Talks to one registry over HTTP: manifests, configs and ranges of blobs, with tokens, retries and deadlines.
//! Called by `mount`; implements `blob::BlobSource`; uses the core.

mod auth;
mod client;
mod connections;
mod manifest;
mod range;
mod retry;
mod survey;
mod traffic;

pub use client::{Registry, RegistryOptions};
pub use survey::Finding;
pub use traffic::{Traffic, TrafficCount};
