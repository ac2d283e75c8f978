//! The command line: one thin file a verb. The only user of clap.
//! Called by `main.rs`; may use every layer below.

mod background;
mod failure;
mod logging;
mod mount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub fn run() -> ExitCode {
    // Once for the process: reqwest and oci-client are built without a provider of their own. It is an error only
    // when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match mount::Command::try_parse_from(main_form(std::env::args_os())) {
        Ok(command) => command.run(),
        Err(error) => {
            // Also `--help` and `--version`, which are no errors: clap knows stream and exit code.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// `eo-mount mount …` is `eo-mount …`, which is what the program is for.
fn main_form(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.enumerate().filter(|(at, argument)| !(*at == 1 && argument == "mount")).map(|(_, argument)| argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_mount_may_be_said() {
        let form = |arguments: &[&str]| {
            main_form(arguments.iter().map(OsString::from))
                .map(|argument| argument.into_string().expect("text"))
                .collect::<Vec<_>>()
        };
        assert_eq!(form(&["eo-mount", "mount", "a/b:c", "mount"]), ["eo-mount", "a/b:c", "mount"]);
        assert_eq!(form(&["eo-mount", "-f", "a/b:c", "d"]), ["eo-mount", "-f", "a/b:c", "d"]);
        assert_eq!(form(&["eo-mount"]), ["eo-mount"]);
    }
}
