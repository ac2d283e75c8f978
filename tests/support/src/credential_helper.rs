//! A credential helper program as docker calls them, written by hand so that it does what a test wants.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::home::Home;

/// `docker-credential-NAME` in a folder of this home: keeps one login in a file beside it, and writes down what it was
/// called for. `get` says what `answer` is, if there is one.
pub struct CredentialHelper {
    folder: PathBuf,
    name: String,
}

impl CredentialHelper {
    pub fn new(home: &Home, name: &str) -> Self {
        let helper = Self { folder: home.path().join("bin"), name: name.to_owned() };
        std::fs::create_dir_all(&helper.folder).expect("a home can be written");
        let kept = helper.folder.join(format!("{name}.kept"));
        helper.script(&format!(
            r#"case "$1" in
store) printf '%s' "$input" > '{kept}' ;;
erase) rm -f '{kept}' ;;
get) cat '{kept}' 2> /dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;
esac"#,
            kept = kept.display()
        ));
        helper
    }

    /// Another program in its place; `$1` is the verb, `$input` what came by standard input.
    pub fn script(&self, script: &str) {
        let program = self.folder.join(format!("docker-credential-{}", self.name));
        let text = format!("#!/bin/sh\ninput=$(cat)\necho \"$1 $input\" >> '{}'\n{script}\n", self.log().display());
        // Not while it runs: the kernel would not start it.
        let new = self.folder.join("new");
        std::fs::write(&new, text).expect("a home can be written");
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("one's own file");
        std::fs::rename(&new, &program).expect("a home can be written");
    }

    /// It answers with this login.
    pub fn holds(&self, username: &str, secret: &str) {
        let login = serde_json::json!({"ServerURL": "x", "Username": username, "Secret": secret}).to_string();
        std::fs::write(self.folder.join(format!("{}.kept", self.name)), login).expect("a home can be written");
    }

    /// A `PATH` with its folder in front.
    pub fn path(&self) -> String {
        format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap_or_default())
    }

    /// A line a call: verb and input.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}
