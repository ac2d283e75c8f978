//! `eo-mount doctor REFERENCE`: what works and what does not, and what to do about it.

use std::io::{self, Write};

use clap::Parser;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::common::Common;
use super::failure::{ARTIFACT, Failure, MOUNT};
use crate::cache;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse;
use crate::mount::{Mount, Options};
use crate::oci::Reference;
use crate::registry::Registry;

/// Without these there is no mount. The rest is good to know.
const NEEDED: [&str; 7] = ["connection", "login", "manifest", "layers", "range", "/dev/fuse", "mounting"];

/// Look for what may be wrong: with the registry, the login, the artifact, the cache folder, FUSE
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Report<'a> {
    reference: &'a str,
    /// All that is needed works.
    ok: bool,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    needed: bool,
    /// What was found, or what is wrong with what.
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.look())
    }

    async fn look(&self) -> Result<(), Failure> {
        let options = self.common.options()?;
        let reference = self.reference.parse().map_err(|error| Failure::artifact(&error))?;
        let deadline = Instant::now() + options.timeout;
        let local = tokio::task::spawn_blocking({
            let options = options.clone();
            move || this_system(&options)
        });
        let mut checks: Vec<Check> = match reference {
            Reference::Registry(reference) if !options.offline => {
                let findings = match Registry::new(reference, &options.registry()) {
                    Ok(registry) => registry.survey().await,
                    Err(error) => vec![("connection", Err(error))],
                };
                findings.into_iter().map(Check::of).collect()
            }
            _ => {
                let mount = Mount::open(&self.reference, options).await;
                let found = mount.map(|mount| format!("{} bytes of layers and configs", mount.usage().bytes));
                vec![Check::of(("manifest", found))]
            }
        };
        checks.extend(match timeout_at(deadline, local).await {
            Ok(Ok(found)) => found,
            Ok(Err(panic)) => return Err(Failure::system("looking at this system", panic)),
            Err(_) => {
                let hangs = Error::new(ErrorKind::TimedOut, "cache folder", "its disk does not answer");
                vec![Check::of(("cache", Err(hangs.hint("choose another with --cache-dir"))))]
            }
        });
        let failed = |check: &&Check| check.needed && !check.ok;
        let code = checks.iter().find(failed).map(|check| match check.check {
            "/dev/fuse" | "mounting" => MOUNT,
            _ => ARTIFACT,
        });
        Failure::of_output(self.print(Report { reference: &self.reference, ok: code.is_none(), checks }))?;
        code.map_or(Ok(()), |code| Err(Failure::silent(code)))
    }

    fn print(&self, report: Report<'_>) -> io::Result<()> {
        let mut out = io::stdout();
        if self.json {
            serde_json::to_writer(&mut out, &report)?;
            return writeln!(out);
        }
        for Check { check, ok, found, hint, .. } in report.checks {
            let mark = if ok { '✓' } else { '✗' };
            let hint = hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            writeln!(out, "{mark} {check:<12} {found}{hint}")?;
        }
        Ok(())
    }
}

/// Blocks on the disk.
fn this_system(options: &Options) -> Vec<Check> {
    let cache = match &options.cache_dir {
        Some(dir) => cache::survey(dir, options.cache_size, options.cache_min_free),
        None => {
            let none = Error::new(ErrorKind::NotFound, "cache folder", "none is known");
            vec![("cache", Err(none.hint("give one with --cache-dir, or set HOME")))]
        }
    };
    cache.into_iter().chain(fuse::survey()).map(Check::of).collect()
}

impl Check {
    fn of((check, found): (&'static str, Result<String>)) -> Self {
        let needed = NEEDED.contains(&check);
        match found {
            Ok(found) => Self { check, ok: true, needed, found: crate::error::printable(&found), hint: None },
            Err(Error { object, cause, hint, .. }) => {
                Self { check, ok: false, needed, found: format!("{object}: {cause}"), hint }
            }
        }
    }
}
