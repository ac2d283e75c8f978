//! Who fills a registry.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::RealRegistry;
use crate::run::{Finished, run};
use crate::tools;

const PATIENCE: Duration = Duration::from_secs(300);

impl RealRegistry {
    /// `oras push <registry>/<name> <arguments>` in the directory that holds the files.
    #[track_caller]
    pub fn push_with_oras(&self, directory: &Path, name: &str, arguments: &[&str]) -> Finished {
        let reference = self.reference(name);
        // Whom it trusts is no matter here.
        let transport = if self.setup.guard.tls.is_some() { "--insecure" } else { "--plain-http" };
        let first = ["push", transport, &reference];
        self.oras(directory, &[&first, arguments].concat())
    }

    /// Any `oras` command, with the login of who may push. Panics when it fails.
    #[track_caller]
    pub fn oras(&self, directory: &Path, arguments: &[&str]) -> Finished {
        self.client(tools::oras().as_ref(), directory, arguments)
    }

    /// `skopeo copy <source> docker://<registry>/<name>`, which keeps all digests. `oci:folder:tag` is a source.
    #[track_caller]
    pub fn push_with_skopeo(&self, directory: &Path, source: &str, name: &str) -> Finished {
        let target = format!("docker://{}", self.reference(name));
        let authfile = self.docker_config().join("config.json");
        let authfile = format!("--dest-authfile={}", authfile.display());
        let copy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"];
        let arguments = [&copy[..], &[&authfile, source, &target]].concat();
        self.client("skopeo".as_ref(), directory, &arguments)
    }

    #[track_caller]
    fn client(&self, program: &Path, directory: &Path, arguments: &[&str]) -> Finished {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory);
        command.env("HOME", self.directory.path()).env("DOCKER_CONFIG", self.docker_config());
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        let said = format!("{} {}", program.display(), arguments.join(" "));
        run(&mut command, PATIENCE).expect_success(&said)
    }
}
