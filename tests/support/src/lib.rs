//! What the tests and benchmarks of eo-mount stand on: registries, slow links, mounts and archives.
//!
//! Everything works from plain synchronous tests, many at a time, and ends with its owner: dropping a
//! registry, a link or a mount stops it, also while a test panics. Every wait has an end. What a test
//! cannot go on without (a missing program, a server that does not start) panics with a sentence that
//! says what to do.

pub mod as_user;
pub mod certificates;
pub mod credential_helper;
mod daemon;
pub mod digest;
pub mod eo_mount;
pub mod extracted;
pub mod files;
pub mod fixtures;
pub mod hanging_disk;
pub mod home;
pub mod link;
pub mod mount_table;
pub mod mounted;
pub mod namespace;
pub mod nginx;
pub mod plain_http;
pub mod processes;
pub mod python;
pub mod real_registry;
pub mod run;
pub mod scripted_registry;
mod server_thread;
pub mod token_server;
pub mod tools;
pub mod wait;
pub mod xattr;

pub use as_user::User;
pub use certificates::{Certificates, Pair};
pub use credential_helper::CredentialHelper;
pub use digest::sha256;
pub use eo_mount::EoMount;
pub use extracted::Extracted;
pub use hanging_disk::HangingDisk;
pub use home::Home;
pub use link::{Cuts, Link, Shape};
pub use mounted::Mounted;
pub use nginx::Nginx;
pub use real_registry::{Guard, Program, RealRegistry};
pub use run::{Finished, run, sh};
pub use scripted_registry::{ALWAYS, Artifact, Descriptor, Fault, Gate, Kind, Matcher, ScriptedRegistry, Takes};
pub use token_server::TokenServer;
