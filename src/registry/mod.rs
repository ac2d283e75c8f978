//! Talks to one registry over HTTP: manifests, configs and ranges of blobs, with tokens, retries and deadlines.
//! Called by `mount`; implements `blob::BlobSource`; uses the core.

mod answer;
mod auth;
mod bandwidth;
mod breaker;
mod client;
mod connections;
mod endpoint;
mod manifest;
mod mirrors;
mod range;
mod retry;
mod stream;
mod targets;
mod traffic;
mod web;

pub use client::{Registry, RegistryOptions};
pub use traffic::{Traffic, TrafficCount};
