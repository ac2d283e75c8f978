//! Real registries on a loopback port, filled by the real `oras` and `skopeo`.
//!
//! ```no_run
//! use std::path::Path;
//!
//! let registry = eo_mount_testing::RealRegistry::start();
//! registry.push_with_oras(
//!     Path::new("sample"),
//!     "pastis-2433:sample",
//!     &["--artifact-type", "application/vnd.whatever.v1+tar", "10000.tar:application/vnd.oci.image.layer.v1.tar"],
//! );
//! println!("{}", registry.reference("pastis-2433:sample"));
//! ```

mod client;
mod setup;

use std::ffi::OsStr;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

pub use self::setup::{Guard, PASSWORD, Program, Setup, USERNAME};
use crate::daemon::Daemon;
use crate::wait::wait_until;

/// Ends when dropped, and with the test program however that ends.
pub struct RealRegistry {
    address: String,
    /// None while it is stopped.
    server: Option<Daemon>,
    setup: Setup,
    directory: TempDir,
}

impl RealRegistry {
    /// Debian's, which anybody may fill. Returns when it listens.
    pub fn start() -> Self {
        Self::of(Program::DockerRegistry).start()
    }

    /// Another version of the same program, whose storage is in a temporary directory in this one.
    pub fn start_with(program: &Path, parent: &Path) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a temporary directory");
        Self::of(Program::DistributionAt(program.to_owned())).start_in(directory)
    }

    /// Debian's, which wants a login, or TLS, or both.
    pub fn guarded(guard: &Guard) -> Self {
        Self::of(Program::DockerRegistry).guard(guard).start()
    }

    /// To be told more, and started.
    pub fn of(program: Program) -> Setup {
        Setup::new(program)
    }

    fn start_in(setup: Setup, directory: TempDir) -> Self {
        let mut registry = Self { address: "127.0.0.1:0".to_owned(), server: None, setup, directory };
        registry.address = registry.start_at().unwrap_or_else(|log| panic!("the registry does not start: {log}"));
        registry.setup.write_login(&registry.docker_config(), &registry.address);
        registry
    }

    /// At its address, which may leave the port to the registry.
    fn start_at(&mut self) -> Result<String, String> {
        let program = self.setup.program.path();
        let arguments = self.setup.arguments(self.directory.path(), &self.address);
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let (server, address) = Daemon::start(&program, &arguments, address_in)?;
        self.server = Some(server);
        Ok(address)
    }

    /// Connections break, and new ones are refused.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// At the same address, with what it kept on disk.
    pub fn start_again(&mut self) {
        self.stop();
        let mut log = String::new();
        let started = wait_until(Duration::from_secs(30), || match self.start_at() {
            Ok(_) => true,
            // Connections of before may hold the port for a moment.
            Err(said) => {
                log = said;
                false
            }
        });
        assert!(started, "the registry does not start again: {log}");
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `127.0.0.1:port/name`; the name with its tag or digest.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// `localhost:port/name`, as people write it.
    pub fn on_localhost(&self, name: &str) -> String {
        self.reference(name).replacen("127.0.0.1", "localhost", 1)
    }

    /// What it wrote to stderr since it was started.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Where it keeps its blobs.
    pub fn storage(&self) -> PathBuf {
        self.directory.path().join("storage")
    }

    /// `DOCKER_CONFIG` of somebody who may push.
    pub fn docker_config(&self) -> PathBuf {
        self.directory.path().join("docker")
    }
}

fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on 127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let address = format!("127.0.0.1:{port}");
    // It has said so before it does.
    wait_until(Duration::from_secs(10), || TcpStream::connect(&address).is_ok()).then_some(address)
}
