//! TLS and proxies: whom a registry's certificate is believed from, and what is said when it is not.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use eo_mount_testing::fixtures::RawTar;
use eo_mount_testing::namespace::{in_own_namespace, mount};
use eo_mount_testing::{Artifact, Certificates, EoMount, Guard, Home, Pair, RealRegistry, ScriptedRegistry};

const NAMES: &str = "IP:127.0.0.1,IP:0.0.0.0,DNS:localhost";

fn registry(pair: Pair, clients_of: Option<&Certificates>) -> RealRegistry {
    let clients_of = clients_of.map(Certificates::authority);
    RealRegistry::guarded(&Guard { login: false, tls: Some(pair), clients_of })
}

/// The same machine under an address that is not known to be a loopback one.
fn elsewhere(registry: &RealRegistry) -> String {
    registry.reference("data:v1").replace("127.0.0.1", "0.0.0.0")
}

fn ls(reference: &str, home: &Home) -> EoMount {
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(home).args(["ls", reference])
}

/// The registry was reached: it says that it does not have the artifact.
#[track_caller]
fn reached(call: EoMount) -> String {
    let said = call.output();
    assert!(said.code == 1 && said.stderr.contains("no such tag"), "{}", said.stderr);
    said.stderr
}

/// One plain line with cause and way out, exit code 1.
#[track_caller]
fn refused(call: EoMount, cause: &str, hint: &str) {
    let said = call.output();
    assert_eq!((said.code, said.text().as_str()), (1, ""), "{}", said.stderr);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    let (before, after) = said.stderr.split_once(" (").unwrap_or_else(|| panic!("no hint: {}", said.stderr));
    assert!(before.contains(cause), "not the cause ({cause}): {}", said.stderr);
    assert!(after.contains(hint), "not the hint ({hint}): {}", said.stderr);
}

#[test]
fn an_authority_of_ones_own_is_trusted_when_it_is_named_and_not_before() {
    let certificates = Certificates::new();
    let registry = registry(certificates.issue("server", NAMES, None), None);
    let home = Home::new();
    let reference = elsewhere(&registry);
    refused(ls(&reference, &home), "of an authority that is not trusted here", "--ca-file");
    reached(ls(&reference, &home).arg("--ca-file").arg(certificates.authority()));
    // For the loopback address it also says that TLS is meant.
    reached(ls(&registry.reference("data:v1"), &home).env("EO_MOUNT_CA_FILE", certificates.authority()));
    refused(
        ls(&reference, &home).arg("--ca-file").arg(Certificates::new().authority()),
        "of an authority that is not trusted here",
        "--ca-file",
    );
    // The system's own way to add one.
    reached(ls(&reference, &home).env("SSL_CERT_FILE", certificates.authority()));
}

#[test]
fn insecure_believes_everybody_and_warns() {
    let certificates = Certificates::new();
    let registry = registry(certificates.issue("server", "DNS:another", None), None);
    let said = reached(ls(&elsewhere(&registry), &Home::new()).arg("--insecure"));
    assert!(said.contains("WARN") && said.contains("not checked"), "{said}");
}

#[test]
fn what_registries_conf_calls_insecure_may_show_any_certificate_or_speak_plain_http() {
    let certificates = Certificates::new();
    let conf = tempfile::NamedTempFile::new().unwrap();
    for pair in [Some(certificates.issue("server", "DNS:another", None)), None] {
        let guard = Guard { tls: pair, ..Guard::default() };
        let registry = RealRegistry::guarded(&guard);
        let reference = elsewhere(&registry);
        let location = reference.split('/').next().unwrap();
        std::fs::write(conf.path(), format!("[[registry]]\nlocation = \"{location}\"\ninsecure = true\n")).unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("x"), "content").unwrap();
        registry.push_with_oras(files.path(), "data:v1", &["x"]);
        let home = Home::new();
        let said = ls(&reference, &home).env("CONTAINERS_REGISTRIES_CONF", conf.path()).output();
        assert_eq!((said.code, said.text().as_str()), (0, "config.json\nx\n"), "{}", said.stderr);
        let how = if guard.tls.is_some() { "its certificate is not checked" } else { "it is spoken to without TLS" };
        assert_eq!(said.stderr.matches("(insecure)").count(), 1, "{}", said.stderr);
        assert!(said.stderr.contains(how), "{}", said.stderr);
        let copy = EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(&home).args([
            "copy",
            &reference,
            &format!("{location}/copy:v1"),
        ]);
        copy.env("CONTAINERS_REGISTRIES_CONF", conf.path()).output().expect_success("copy");
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let certificates = Certificates::new();
    let home = Home::new();
    for (file, names, dates, cause, hint) in [
        ("old", NAMES, Some(("20200101000000Z", "20210101000000Z")), "expired at 2021-01-01T00:00:00Z", "clock"),
        ("new", NAMES, Some(("20980101000000Z", "20990101000000Z")), "valid from 2098-01-01T00:00:00Z", "clock"),
        ("other", "DNS:another.example", None, "for another name, not 0.0.0.0", "check the address"),
    ] {
        let registry = registry(certificates.issue(file, names, dates), None);
        refused(ls(&elsewhere(&registry), &home).arg("--ca-file").arg(certificates.authority()), cause, hint);
    }
}

#[test]
fn a_client_certificate_is_shown_where_one_is_wanted() {
    let certificates = Certificates::new();
    let registry = registry(certificates.issue("server", NAMES, None), Some(&certificates));
    let Pair { certificate, key } = certificates.issue("client", "DNS:me", None);
    let call = || ls(&registry.reference("data:v1"), &Home::new()).arg("--ca-file").arg(certificates.authority());
    refused(call(), "the server ends TLS", "--cert-file and --key-file");
    reached(call().arg("--cert-file").arg(&certificate).arg("--key-file").arg(&key));
    refused(call().arg("--cert-file").arg(&certificate), "a certificate without its key", "--key-file");
    refused(call().arg("--key-file").arg(&key), "a key without its certificate", "--cert-file");
    refused(call().arg("--cert-file").arg(&certificate).arg("--key-file").arg(&certificate), "no key", "PEM");
}

#[test]
fn a_ca_file_that_is_missing_or_no_pem_is_named() {
    let home = Home::new();
    let file = home.path().join("ca.pem");
    let call = || ls("registry.invalid/data:v1", &home).arg("--ca-file").arg(&file);
    refused(call(), &format!("{}: cannot be read: No such file", file.display()), "PEM");
    fs::write(&file, "no certificate").expect("written");
    refused(call(), &format!("{}: there is no certificate in it", file.display()), "PEM");
    fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
    refused(call(), "ca.pem", "PEM");
}

/// Of one's own and, in a namespace, of the machine.
#[test]
fn certificates_are_found_where_docker_and_podman_keep_them() {
    in_own_namespace("certificates_are_found_where_docker_and_podman_keep_them", || {
        let certificates = Certificates::new();
        let registry = registry(certificates.issue("server", NAMES, None), Some(&certificates));
        let client = certificates.issue("client", "DNS:me", None);
        let home = Home::new();
        // On a copy of /etc; what of it is not for us is not needed.
        let etc = home.path().join("etc");
        let _ = Command::new("cp").args(["-a", "/etc"]).arg(&etc).stderr(Stdio::null()).status();
        mount(&["--bind", &etc.display().to_string()], Path::new("/etc"));
        for base in [home.path().join(".config/containers"), "/etc/containers".into(), "/etc/docker".into()] {
            let folder = base.join("certs.d").join(registry.address());
            fs::create_dir_all(&folder).expect("made");
            fs::copy(certificates.authority(), folder.join("ca.crt")).expect("copied");
            fs::copy(&client.certificate, folder.join("client.cert")).expect("copied");
            refused(ls(&registry.reference("data:v1"), &home), "client.key", "PEM");
            fs::copy(&client.key, folder.join("client.key")).expect("copied");
            reached(ls(&registry.reference("data:v1"), &home));
            fs::remove_dir_all(base.join("certs.d")).expect("removed");
        }
    });
}

/// A proxy that answers each request with this, and says what it was asked.
fn proxy(answer: &'static str) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (asked, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let asked = asked.clone();
            thread::spawn(move || converse(stream, answer, &asked));
        }
    });
    (address, heard)
}

/// With an empty answer it does what a proxy does: passes on to the machine itself, whatever the name.
fn converse(stream: TcpStream, answer: &str, asked: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|bytes| bytes > 0) {}
    let _ = asked.send(head.clone());
    let mut stream = stream;
    if !answer.is_empty() {
        let _ = stream.write_all(answer.as_bytes());
        return;
    }
    let Some(port) = head.split(' ').nth(1).and_then(|to| to.rsplit_once(':')?.1.parse::<u16>().ok()) else { return };
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    let (mut to, mut from) = (server.try_clone().expect("a socket"), stream.try_clone().expect("a socket"));
    let up = thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut server, &mut stream);
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = up.join();
}

#[test]
fn a_registry_is_reached_through_the_proxy_that_the_environment_names() {
    let certificates = Certificates::new();
    let registry = registry(certificates.issue("server", "DNS:registry.invalid", None), None);
    let port = registry.address().rsplit_once(':').expect("a port").1;
    let reference = format!("registry.invalid:{port}/data:v1");
    let home = Home::new();
    let call = || ls(&reference, &home).arg("--ca-file").arg(certificates.authority());
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let (address, heard) = proxy("");
        reached(call().env(variable, format!("http://me:geheim@{address}")));
        let head = heard.recv().expect("it was asked");
        assert!(head.starts_with(&format!("CONNECT registry.invalid:{port} ")), "{head}");
        assert!(head.contains("proxy-authorization") || head.contains("Proxy-Authorization"), "{head}");
    }
    let (address, heard) = proxy("");
    let direct = call().env("HTTPS_PROXY", format!("http://{address}")).env("NO_PROXY", "registry.invalid");
    refused(direct, "cannot be looked up", "check the address and the network");
    assert!(heard.try_recv().is_err());
}

#[test]
fn a_proxy_that_refuses_or_is_not_there_is_named_by_its_variable_and_its_password_is_not_shown() {
    let (address, _heard) = proxy("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let (wants, _heard) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").to_string();
    for (address, cause) in [(address, "the proxy refuses"), (wants, "the proxy refuses"), (nobody, "refused")] {
        let home = Home::new();
        let call = ls("registry.invalid/data:v1", &home).args(["-vvv", "--log"]).arg(home.log_file());
        refused(call.env("HTTPS_PROXY", format!("http://me:geheim@{address}")), cause, "HTTPS_PROXY");
        let log = fs::read_to_string(home.log_file()).unwrap_or_default();
        assert!(!log.contains("geheim") && !log.contains("bWU6Z2VoZWlt"), "{log}");
    }
}

#[test]
fn a_proxy_that_wants_a_login_for_plain_http_is_named_by_its_variable() {
    let (address, _heard) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    let home = Home::new();
    let call = ls("registry.invalid/data:v1", &home).arg("--plain-http").env("HTTP_PROXY", format!("http://{address}"));
    refused(call, "the proxy refuses: 407", "check the proxy that is set in HTTP_PROXY");
}

#[test]
fn no_certificate_is_read_where_there_is_no_tls() {
    let registry = ScriptedRegistry::start();
    Artifact::new().tar("good.tar", RawTar::new().file("file", b"good").finish()).push(&registry, "data", "v1");
    let home = Home::new();
    let trace = home.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=openat", "-o"]).arg(&trace);
    command.arg(env!("CARGO_BIN_EXE_eo-mount")).args(["ls", &registry.reference("data:v1")]).env("HOME", home.path());
    eo_mount_testing::run(&mut command, std::time::Duration::from_secs(60)).expect_success("strace");
    let opened = read(&trace);
    assert!(opened.contains("manifests") || opened.contains("openat"), "{opened}");
    assert!(!opened.contains("/etc/ssl") && !opened.contains("ca-certificates"), "{opened}");
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)).expect("readable");
    text
}
