//! The command line: one thin file a verb. The only user of clap.
//! Called by `main.rs`; may use every layer below.

mod access;
mod annotations;
mod attach;
mod background;
mod cache;
mod cat;
mod common;
mod copy;
mod diff;
mod discover;
mod doctor;
mod du;
mod failure;
mod index;
mod inspect;
mod interrupt;
mod logging;
mod login;
mod ls;
mod mount;
mod pack;
mod prefetch;
mod progress;
mod pull;
mod push;
mod show;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Subcommand};

use failure::Failure;
use rustix::process::Resource;

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(mount::Command),
    Ls(ls::Command),
    Index(index::Command),
    Prefetch(prefetch::Command),
    Pack(pack::Command),
    Push(push::Command),
    Copy(copy::Command),
    Pull(pull::Command),
    Inspect(inspect::Command),
    Cat(cat::Command),
    Du(du::Command),
    Diff(diff::Command),
    Attach(attach::Command),
    Discover(discover::Command),
    Cache(cache::Command),
    Doctor(doctor::Command),
    Login(login::Login),
    Logout(login::Logout),
}

pub fn run() -> ExitCode {
    without_core_dumps();
    // Once for the process: reqwest is built without a provider of its own. It is an error only when there is one
    // already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match parse(std::env::args_os()) {
        Ok(verb) => verb.run(),
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

/// Memory holds passwords and tokens. The hard limit stays, so that `prlimit` can allow what a search for a bug needs.
fn without_core_dumps() {
    let limit = rustix::process::Rlimit { current: Some(0), ..rustix::process::getrlimit(Resource::Core) };
    // To lower a limit is always allowed.
    let _ = rustix::process::setrlimit(Resource::Core, limit);
}

impl Verb {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Mount(command) => command.run(),
            Self::Ls(command) => command.run(),
            Self::Index(command) => command.run(),
            Self::Prefetch(command) => command.run(),
            Self::Pack(command) => command.run(),
            Self::Push(command) => command.run(),
            Self::Copy(command) => command.run(),
            Self::Pull(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Cat(command) => command.run(),
            Self::Du(command) => command.run(),
            Self::Diff(command) => command.run(),
            Self::Attach(command) => command.run(),
            Self::Discover(command) => command.run(),
            Self::Cache(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Login(command) => command.run(),
            Self::Logout(command) => command.run(),
        }
    }
}

/// What the program is for needs no verb; each verb, and that one too, may come first.
fn command() -> clap::Command {
    Verb::augment_subcommands(mount::Command::command())
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .subcommand_help_heading("Verbs")
        .subcommand_value_name("VERB")
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Verb, clap::Error> {
    let mut command = command();
    let arguments: Vec<_> = arguments.collect();
    // Before anything is said about the arguments that would show it.
    if arguments
        .iter()
        .any(|argument| argument.as_encoded_bytes().starts_with(b"--password=") || argument == "--password")
    {
        let line = "--password would show it to everybody on this machine: give it with --password-stdin, or use eo-mount login";
        return Err(command.error(ErrorKind::UnknownArgument, line));
    }
    let matches = command.try_get_matches_from_mut(arguments).map_err(|error| one_too_many(error, &mut command))?;
    if matches.subcommand_name().is_some() {
        return Verb::from_arg_matches(&matches);
    }
    let mount = mount::Command::from_arg_matches(&matches)?;
    if Verb::has_subcommand(&mount.reference) {
        let verb = &mount.reference;
        let line =
            format!("a verb comes first: eo-mount {verb} … (for a repository of that name: eo-mount mount {verb} …)");
        return Err(command.error(ErrorKind::ArgumentConflict, line));
    }
    Ok(Verb::Mount(mount))
}

/// Whatever stands where nothing more is expected is a subcommand to clap, one that comes too late.
fn one_too_many(error: clap::Error, command: &mut clap::Command) -> clap::Error {
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(argument)) if error.kind() == ErrorKind::ArgumentConflict => {
            let mut unexpected = clap::Error::new(ErrorKind::UnknownArgument).with_cmd(command);
            unexpected.insert(ContextKind::InvalidArg, ContextValue::String(argument.clone()));
            unexpected.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
            unexpected
        }
        _ => error,
    }
}

/// `eo-mount mount …` and `eo-mount …` are the same.
fn without_verb(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.enumerate().filter(|(at, argument)| !(*at == 1 && argument == "mount")).map(|(_, argument)| argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Verb, clap::Error> {
        parse(["eo-mount"].iter().chain(arguments).map(OsString::from))
    }

    #[test]
    fn the_verb_mount_may_be_said() {
        let form = |arguments: &[&str]| {
            without_verb(arguments.iter().map(OsString::from))
                .map(|argument| argument.into_string().expect("text"))
                .collect::<Vec<_>>()
        };
        assert_eq!(form(&["eo-mount", "mount", "a/b:c", "mount"]), ["eo-mount", "a/b:c", "mount"]);
        assert_eq!(form(&["eo-mount", "-f", "a/b:c", "d"]), ["eo-mount", "-f", "a/b:c", "d"]);
        assert_eq!(form(&["eo-mount"]), ["eo-mount"]);
        for arguments in
            [&["a/b:c", "mount"][..], &["mount", "a/b:c", "ls"], &["-f", "a", "index"], &["mount", "ls", "d"]]
        {
            assert!(matches!(parsed(arguments), Ok(Verb::Mount(_))), "{arguments:?}");
        }
    }

    #[test]
    fn verbs_come_first_and_take_the_shared_options() {
        assert!(matches!(parsed(&["ls", "-lR", "--plain-http", "a/b:c", "d"]), Ok(Verb::Ls(_))));
        assert!(matches!(parsed(&["index", "a/b:c", "1", "2", "--timeout", "5s"]), Ok(Verb::Index(_))));
        let error = parsed(&["-v", "ls", "a/b"]).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("eo-mount mount ls"), "{error}");
        assert_eq!(parsed(&[]).expect_err("refused").exit_code(), 2);
        let error = parsed(&["-v", "a/b", "d", "e"]).expect_err("refused");
        let said = error.to_string();
        assert!(said.contains("unexpected argument 'e'") && said.contains("<REFERENCE> <MOUNTPOINT>"), "{said}");
        assert_eq!(error.exit_code(), 2);
        let help = parsed(&["--help"]).expect_err("help").to_string();
        for part in ["Verbs:", "  ls ", "  index ", "<REFERENCE> <MOUNTPOINT>", "--allow-other", "Examples:"] {
            assert!(help.contains(part), "{part}\n{help}");
        }
    }

    #[test]
    fn every_option_has_its_variable() {
        let mut command = command();
        command.build();
        let shared: Vec<_> =
            mount::Command::command().get_arguments().map(|argument| argument.get_id().clone()).collect();
        let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
        for verb in verbs.chain([&command]) {
            for argument in verb.get_arguments().filter(|argument| shared.contains(argument.get_id())) {
                let Some(long) = argument.get_long().filter(|long| *long != background::FLAG) else { continue };
                let variable = format!("EO_MOUNT_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(argument.get_env(), Some(variable.as_ref()), "{} --{long}", verb.get_name());
            }
        }
    }
}
