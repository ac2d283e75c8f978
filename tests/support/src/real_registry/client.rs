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
        let ca_file = self.setup.ca_file.as_ref().map(|path| path.to_string_lossy().into_owned());
        let first = match &ca_file {
            Some(ca_file) => vec!["push", "--ca-file", ca_file.as_str(), &reference],
            None => vec!["push", "--plain-http", &reference],
        };
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
        let ca_folder = self.setup.ca_file.as_ref().and_then(|path| path.parent());
        let trust = match ca_folder {
            Some(folder) => format!("--dest-cert-dir={}", folder.display()),
            None => "--dest-tls-verify=false".to_owned(),
        };
        let authfile = self.docker_config().join("config.json");
        let authfile = format!("--dest-authfile={}", authfile.display());
        let arguments =
            ["--insecure-policy", "copy", "--quiet", "--preserve-digests", &authfile, &trust, source, &target];
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
