//! `eo-mount diff REFERENCE REFERENCE`: what differs between two artifacts.

use std::io::{self, Write};

use clap::Parser;
use serde_json::{Value, json};

use super::common::Common;
use super::failure::Failure;
use super::show;
use crate::error::Error;
use crate::mount::Mount;
use crate::oci::{Descriptor, Digest};
use crate::transfer::diff::{Change, Depth, Difference, LayerChange, Member, MemberChange, compare};

/// As diff(1) has it.
const DIFFERENT: u8 = 1;

/// Compare two artifacts: layers by title and digest, and what is in those that differ by kind, size, time, mode and
/// target. The exit code is 0 if they are the same, 1 if they differ, 2 if that cannot be told.
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    old: String,

    /// As for a mount
    new: String,

    /// Look into no layer
    #[arg(short, long)]
    brief: bool,

    /// Read members that have the same size in both, and compare their SHA-256 [default: no content is fetched]
    #[arg(long, conflicts_with = "brief")]
    content: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.diff())
    }

    async fn diff(&self) -> Result<(), Failure> {
        // Whatever it is: 1 is for what differs.
        let failed = |error: Error| Failure::usage(&error);
        let old = Mount::open(&self.old, self.common.options()?).await.map_err(failed)?;
        let new = Mount::open(&self.new, self.common.options()?).await.map_err(failed)?;
        let depth = match (self.brief, self.content) {
            (true, _) => Depth::Layers,
            (_, true) => Depth::Content,
            _ => Depth::Members,
        };
        let difference = compare(&old, &new, depth).await.map_err(failed)?;
        let mut out = io::stdout().lock();
        let printed = match self.json {
            true => writeln!(out, "{}", json_of(&difference)),
            false => text(&mut out, &difference),
        };
        Failure::of_output(printed)?;
        if difference.is_none() { Ok(()) } else { Err(Failure::silent(DIFFERENT)) }
    }
}

fn sign(change: Change) -> char {
    match change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    }
}

fn text(out: &mut impl Write, difference: &Difference) -> io::Result<()> {
    if difference.configs_differ {
        writeln!(out, "~ config")?;
    }
    for LayerChange { name, change, old, new } in &difference.layers {
        let short = |blob: &Option<Descriptor>| {
            blob.as_ref().map(|blob| format!("{} ({} bytes)", blob.digest.short(), blob.size))
        };
        let digests: Vec<String> = [short(old), short(new)].into_iter().flatten().collect();
        writeln!(out, "{} layer {} {}", sign(*change), show::escaped(name.as_bytes()), digests.join(" -> "))?;
    }
    for MemberChange { path, change, old, new } in &difference.members {
        let said: Vec<String> = [old, new].into_iter().flatten().map(describe).collect();
        writeln!(out, "{} {} {}", sign(*change), show::escaped(path), said.join(" -> "))?;
    }
    Ok(())
}

fn describe(member: &Member) -> String {
    let Member { kind, size, mtime, mode, target, digest } = member;
    let link = if target.is_empty() { String::new() } else { format!(" -> {}", show::escaped(target)) };
    let digest = digest.as_ref().map_or_else(String::new, |digest| format!(" {}", digest.short()));
    format!("{} {size} {}{link}{digest}", show::mode(*kind, *mode), show::rfc3339(*mtime, true))
}

fn json_of(difference: &Difference) -> Value {
    let blob = |blob: &Option<Descriptor>| {
        blob.as_ref()
            .map(|blob| json!({ "digest": blob.digest.as_str(), "size": blob.size, "media_type": blob.media_type }))
    };
    let member = |member: &Option<Member>| {
        member.as_ref().map(|Member { kind, size, mtime, mode, target, digest }| {
            json!({
                "kind": show::kind(*kind),
                "size": size,
                "mtime": show::rfc3339(*mtime, true),
                "mode": format!("{mode:04o}"),
                "digest": digest.as_ref().map(Digest::as_str),
                "link": Some(String::from_utf8_lossy(target)).filter(|target| !target.is_empty()),
            })
        })
    };
    let layers = difference.layers.iter().map(|LayerChange { name, change, old, new }| {
        json!({ "name": name, "change": change, "old": blob(old), "new": blob(new) })
    });
    let members = difference.members.iter().map(|MemberChange { path, change, old, new }| {
        json!({ "path": String::from_utf8_lossy(path), "change": change, "old": member(old), "new": member(new) })
    });
    json!({
        "same_layers": difference.same,
        "config": if difference.configs_differ { "changed" } else { "same" },
        "layers": layers.collect::<Vec<_>>(),
        "members": members.collect::<Vec<_>>(),
    })
}
