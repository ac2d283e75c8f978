//! Debian's nginx before a registry: as what stands before registries out there.
//!
//! One process on a loopback port, with all of its files in a temporary directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::certificates::{Certificates, Pair};
use crate::daemon::Daemon;
use crate::real_registry::RealRegistry;
use crate::run::run;

/// The form of a line of the log: see [`Asked`].
const LOG: &str = r#"log_format asked '$server_port|$request_method|$uri|$status|$http_range|$http_authorization';"#;

/// Ends when dropped, and with the test program however that ends.
pub struct Nginx {
    ports: [u16; 2],
    _server: Daemon,
    directory: TempDir,
}

/// A request that it answered, or passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Of the second address, where the blobs are.
    pub of_blob_host: bool,
    pub method: String,
    pub path: String,
    pub status: u16,
    /// Whether these headers came with it.
    pub range: bool,
    pub authorization: bool,
}

impl Nginx {
    /// Speaks TLS for the registry, with a certificate of theirs.
    #[track_caller]
    pub fn tls(registry: &RealRegistry, certificates: &Certificates) -> Self {
        let Pair { certificate, key } = certificates.issue("nginx", "IP:127.0.0.1,DNS:localhost", None);
        Self::start(|[port, _], _| {
            format!(
                "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; {} }}",
                certificate.display(),
                key.display(),
                location("/", registry)
            )
        })
    }

    /// Sends who wants a blob of distribution to another port, with a URL that is signed and good for this long.
    ///
    /// <https://nginx.org/en/docs/http/ngx_http_secure_link_module.html>
    #[track_caller]
    pub fn redirecting(registry: &RealRegistry, lifetime: Duration) -> Self {
        let (lifetime, blobs) = (lifetime.as_secs(), registry.storage().join("docker/registry/v2/blobs"));
        Self::start(|[port, blob_port], _| {
            let pass = location("/", registry);
            format!(
                r#"
perl_require Digest/MD5.pm;
perl_set $signed 'sub {{
    my ($hex) = shift->uri =~ /([0-9a-f]{{64}})$/;
    my $path = "/blobs/sha256/" . substr($hex, 0, 2) . "/$hex/data";
    my $expires = time + {lifetime};
    my $md5 = Digest::MD5::md5_base64("$expires$path secret");
    $md5 =~ tr(+/)(-_);
    return "$path?md5=$md5&expires=$expires";
}}';
server {{
    listen 127.0.0.1:{port};
    {pass}
    location ~ "/blobs/sha256:[0-9a-f]{{64}}$" {{
        if ($request_method = GET) {{ return 307 http://127.0.0.1:{blob_port}$signed; }}
        proxy_pass http://{};
    }}
}}
server {{
    listen 127.0.0.1:{blob_port};
    location /blobs/ {{
        secure_link $arg_md5,$arg_expires;
        secure_link_md5 "$secure_link_expires$uri secret";
        if ($secure_link != 1) {{ return 403; }}
        alias {}/;
    }}
}}"#,
                registry.address(),
                blobs.display()
            )
        })
    }

    /// Answers eight requests at once, then two a second; others get 429 with a `Retry-After` of one second.
    #[track_caller]
    pub fn limiting(registry: &RealRegistry) -> Self {
        Self::start(|[port, _], _| {
            format!(
                "limit_req_zone $server_port zone=all:1m rate=2r/s;
server {{
    listen 127.0.0.1:{port};
    limit_req zone=all burst=7 nodelay;
    limit_req_status 429;
    error_page 429 @patience;
    location @patience {{ add_header Retry-After 1 always; return 429; }}
    {}
}}",
                location("/", registry)
            )
        })
    }

    /// Keeps whole blobs: until it has one, it answers 200 with all of it whatever range was asked for. It goes on
    /// with that when the client hangs up.
    #[track_caller]
    pub fn caching(registry: &RealRegistry) -> Self {
        Self::start(|[port, _], directory| {
            format!(
                r#"server {{
    listen 127.0.0.1:{port};
    {}
    location ~ "/blobs/sha256:[0-9a-f]{{64}}$" {{ root {}; try_files $uri @all; }}
    location @all {{
        proxy_pass http://{};
        proxy_set_header Range "";
        proxy_set_header Host $http_host;
        proxy_ignore_client_abort on;
        proxy_store on;
        root {};
        max_ranges 0;
    }}
}}"#,
                location("/", registry),
                directory.join("kept").display(),
                registry.address(),
                directory.join("kept").display(),
            )
        })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// `127.0.0.1:port/name`; the name with its tag or digest.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// What was asked of it so far and is answered.
    pub fn asked(&self) -> Vec<Asked> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        log.lines().map(|line| self.parse(line)).collect()
    }

    fn parse(&self, line: &str) -> Asked {
        let fields: Vec<&str> = line.split('|').collect();
        let [port, method, path, status, range, authorization] = fields[..] else {
            panic!("a line of the log of another form: {line}")
        };
        Asked {
            of_blob_host: port == self.ports[1].to_string(),
            method: method.to_owned(),
            path: path.to_owned(),
            status: status.parse().unwrap_or(0),
            range: range != "-",
            authorization: authorization != "-",
        }
    }

    /// `http`: what stands in the block of that name, for two free ports and a directory.
    #[track_caller]
    fn start(http: impl Fn([u16; 2], &Path) -> String) -> Self {
        let program = program();
        // Says what to install if it is missing.
        run(std::process::Command::new(&program).arg("-v"), Duration::from_secs(30));
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Somebody else may take a port before nginx does, which cannot choose one.
        let mut said = String::new();
        for _ in 0..5 {
            let ports = free_ports();
            let config = directory.path().join("nginx.conf");
            let text = config_of(directory.path(), &http(ports, directory.path()));
            std::fs::write(&config, text).expect("a temporary directory can be written");
            let (prefix, errors) = (directory.path().as_os_str(), "stderr".as_ref());
            let arguments = ["-p".as_ref(), prefix, "-c".as_ref(), config.as_os_str(), "-e".as_ref(), errors];
            match Daemon::start(&program, &arguments, |line| line.contains("event method").then_some(())) {
                Ok((server, ())) => return Self { ports, _server: server, directory },
                Err(log) => said = log,
            }
            if !said.contains("Address already in use") {
                break;
            }
        }
        panic!("nginx does not start: {said}")
    }
}

fn config_of(directory: &Path, http: &str) -> String {
    let place = directory.display();
    // One process: none is left when it is killed. As root it would give up its rights to the files otherwise.
    format!(
        "load_module /usr/lib/nginx/modules/ngx_http_perl_module.so;
daemon off; master_process off; pid {place}/pid; error_log stderr notice;
events {{ }}
http {{
    {LOG}
    access_log {place}/access.log asked;
    client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
    client_max_body_size 0;
    {http}
}}
"
    )
}

/// Passes everything below this path on.
fn location(path: &str, registry: &RealRegistry) -> String {
    // Without its own address a registry would send uploads elsewhere.
    format!(
        "location {path} {{ proxy_pass http://{}; proxy_set_header Host $http_host; \
         proxy_set_header X-Forwarded-Proto $scheme; }}",
        registry.address()
    )
}

/// Debian has it where only root looks.
fn program() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/nginx");
    if debian.exists() { debian } else { "nginx".into() }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port on the loopback interface"));
    listeners.map(|listener| listener.local_addr().expect("a bound socket has an address").port())
}
