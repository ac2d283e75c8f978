//! Debian's `docker-registry` on a loopback port, filled by the real `oras`.
//!
//! ```no_run
//! use std::path::{Path, PathBuf};
//!
//! let registry = eo_mount_testing::RealRegistry::start();
//! registry.push_with_oras(
//!     Path::new("sample"),
//!     "pastis-2433:sample",
//!     &["--artifact-type", "application/vnd.whatever.v1+tar", "10000.tar:application/vnd.oci.image.layer.v1.tar"],
//! );
//! println!("{}", registry.reference("pastis-2433:sample"));
//! ```

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use crate::certificates::Pair;
use crate::run::{Finished, run};
use crate::wait::wait_until;
use crate::{plain_http, tools};

const PATIENCE: Duration = Duration::from_secs(30);

/// Who may talk to a registry.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Only [`USERNAME`] with [`PASSWORD`].
    pub login: bool,
    pub tls: Option<Pair>,
    /// Only those with a certificate of this authority.
    pub clients_of: Option<PathBuf>,
}

/// As Harbor names its robots.
pub const USERNAME: &str = "robot$eo";
/// With everything that passwords are broken by.
pub const PASSWORD: &str = "pä:ss$wörd";
/// `htpasswd -nbB`.
const HTPASSWD: &str = "robot$eo:$2b$05$abcdefghijklmnopqrstuuixBY9oIFS65Cv1OnRSmjySnaYXbNgxS\n";

/// Ends when dropped, and with the test program however that ends.
pub struct RealRegistry {
    address: String,
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    directory: TempDir,
}

impl RealRegistry {
    /// Returns when the registry answers.
    pub fn start() -> Self {
        Self::start_with(Path::new("docker-registry"), &std::env::temp_dir())
    }

    /// Another version of the same program, whose storage is in a temporary directory in this one.
    pub fn start_with(program: &Path, parent: &Path) -> Self {
        Self::start_guarded(program, parent, &Guard::default())
    }

    /// That wants a login, or TLS, or both.
    pub fn guarded(guard: &Guard) -> Self {
        Self::start_guarded(Path::new("docker-registry"), &std::env::temp_dir(), guard)
    }

    fn start_guarded(program: &Path, parent: &Path, guard: &Guard) -> Self {
        // Says what to install if it is missing.
        run(Command::new(program).arg("--version"), PATIENCE);
        let directory = tempfile::tempdir_in(parent).expect("a temporary directory");
        let config = directory.path().join("config.yml");
        let mut text = serde_json::json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": directory.path().join("storage")},
                "delete": {"enabled": true},
                "maintenance": {"uploadpurging": {"enabled": false}}
            },
            // It takes a free port and says which.
            "http": {"addr": "127.0.0.1:0", "secret": "of no importance"}
        });
        if guard.login {
            let file = directory.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).expect("a temporary directory can be written");
            text["auth"] = serde_json::json!({"htpasswd": {"realm": "eo-mount tests", "path": file}});
        }
        if let Some(Pair { certificate, key }) = &guard.tls {
            text["http"]["tls"] = serde_json::json!({"certificate": certificate, "key": key});
            if let Some(authority) = &guard.clients_of {
                text["http"]["tls"]["clientcas"] = serde_json::json!([authority]);
            }
        }
        std::fs::write(&config, text.to_string()).expect("a temporary directory can be written");

        let log = Arc::new(Mutex::new(String::new()));
        let (ready, started) = mpsc::channel();
        let for_reader = Arc::clone(&log);
        let program = program.to_owned();
        let reader = std::thread::Builder::new()
            .name("docker-registry".to_owned())
            .spawn(move || start_and_listen(&program, &config, &for_reader, &ready))
            .expect("a thread can be started");

        let child = match started.recv_timeout(PATIENCE) {
            Ok(Started::Child(child)) => child,
            _ => panic!("docker-registry cannot be started through setpriv (apt-get install util-linux)"),
        };
        let mut registry = Self { address: String::new(), child, log, reader: Some(reader), directory };
        match started.recv_timeout(PATIENCE) {
            Ok(Started::Listening(address)) => registry.address = address,
            _ => panic!("docker-registry does not listen: {}", registry.log()),
        }
        // A plain request to TLS is answered with 400.
        let expected = if guard.tls.is_some() {
            400
        } else if guard.login {
            401
        } else {
            200
        };
        let answers = || plain_http::get(&registry.address, "/v2/", &[]).is_ok_and(|answer| answer.status == expected);
        assert!(wait_until(PATIENCE, answers), "docker-registry does not answer: {}", registry.log());
        registry
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

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it keeps its blobs.
    pub fn storage(&self) -> std::path::PathBuf {
        self.directory.path().join("storage")
    }

    /// `oras push --plain-http <registry>/<name> <arguments>` in the directory that holds the files.
    #[track_caller]
    pub fn push_with_oras(&self, directory: &Path, name: &str, arguments: &[&str]) -> Finished {
        let reference = self.reference(name);
        let first = ["push", "--plain-http", &reference];
        self.oras(directory, &[&first, arguments].concat())
    }

    /// Any `oras` command, with no one's credentials. Panics when it fails.
    #[track_caller]
    pub fn oras(&self, directory: &Path, arguments: &[&str]) -> Finished {
        let mut command = Command::new(tools::oras());
        command.args(arguments).current_dir(directory);
        command.env("HOME", self.directory.path()).env("DOCKER_CONFIG", self.directory.path());
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        run(&mut command, Duration::from_secs(300)).expect_success(&format!("oras {}", arguments.join(" ")))
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

enum Started {
    Child(Child),
    Listening(String),
}

/// Lives as long as the registry, because the registry dies with the thread that started it: prctl(2),
/// `PR_SET_PDEATHSIG`. That is how it ends with the test program, even if nobody drops it.
fn start_and_listen(program: &Path, config: &Path, log: &Mutex<String>, ready: &mpsc::Sender<Started>) {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).arg("serve").arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // REGISTRY_… variables would change the configuration.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    // Version 3 sends traces to a collector unless told not to.
    command.env("OTEL_TRACES_EXPORTER", "none");
    let Ok(mut child) = command.spawn() else {
        return;
    };
    let stderr = child.stderr.take();
    if ready.send(Started::Child(child)).is_ok()
        && let Some(stderr) = stderr
    {
        listen(stderr, log, ready);
    }
}

fn listen(stderr: ChildStderr, log: &Mutex<String>, ready: &mpsc::Sender<Started>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let _ = ready.send(Started::Listening(format!("127.0.0.1:{port}")));
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
    }
}
