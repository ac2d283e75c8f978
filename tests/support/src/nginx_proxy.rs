//! Debian's nginx on a loopback port: before a registry, or as the host of its blobs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::run::run;
use crate::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(10);
/// Others take ports, too.
const ATTEMPTS: u32 = 5;

/// Ends when dropped, and with the thread that started it however that ends.
pub struct Nginx {
    port: u16,
    child: Child,
    directory: TempDir,
}

impl Nginx {
    /// `http`: what stands in the `http` block before the server; `server`: what stands in the `server` block. Files are served
    /// from [`root`](Self::root).
    pub fn start(http: &str, server: &str) -> Self {
        // Says what to install if it is missing.
        run(Command::new("nginx").arg("-v"), PATIENCE);
        (0..ATTEMPTS).find_map(|_| Self::attempt(http, server)).expect("nginx does not listen (apt-get install nginx)")
    }

    fn attempt(http: &str, server: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        std::fs::create_dir(path.join("root")).expect("a temporary directory can be written");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on the loopback interface");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {}/{name};\n", path.display()))
            .collect();
        let config = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\n\
             http {{ access_log off; {folders} {http}\nserver {{ listen 127.0.0.1:{port}; root {0}/root; {server} }} }}",
            path.display()
        );
        std::fs::write(path.join("nginx.conf"), config).expect("a temporary directory can be written");
        drop(listener);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nginx", "-p"]).arg(path).arg("-c").arg(path.join("nginx.conf"));
        command.arg("-e").arg(path.join("error.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("setpriv: apt-get install util-linux");
        let mut nginx = Self { port, child, directory };
        let mut ended = false;
        let listens = wait_until(PATIENCE, || {
            ended = nginx.child.try_wait().is_ok_and(|status| status.is_some());
            ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        if ended {
            eprintln!("{}", std::fs::read_to_string(nginx.directory.path().join("error.log")).unwrap_or_default());
        }
        (listens && !ended).then_some(nginx)
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder that is served.
    pub fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    /// What `secure_link_md5` makes of this text.
    pub fn secure_link(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a temporary file can be written");
        md5_base64url(file.path())
    }
}

fn md5_base64url(file: &Path) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "openssl md5 -binary \"$1\" | openssl base64", "sh"]).arg(file);
    let made = run(&mut command, PATIENCE).expect_success("openssl md5 (apt-get install openssl)");
    made.text().trim().trim_end_matches('=').replace('+', "-").replace('/', "_")
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
