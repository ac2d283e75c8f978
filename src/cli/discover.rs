//! `eo-mount discover REFERENCE`: what is attached to an artifact.

use std::io::{self, Write};

use clap::Parser;
use serde_json::{Value, json};

use super::common::Common;
use super::failure::Failure;
use crate::error::printable;
use crate::mount::Repository;
use crate::oci::{Descriptor, Reference};
use crate::transfer::{Attached, discover};

/// What is attached to what is attached …: deeper than anybody goes.
const DEEPEST: usize = 16;

/// Show what is attached to an artifact, such as signatures, whether the registry has the referrers API or not
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Only what is of this type
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,

    /// Also what is attached to that, and so on
    #[arg(short, long)]
    recursive: bool,

    /// Print JSON, as oras discover --format json does
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.discover())
    }

    async fn discover(&self) -> Result<(), Failure> {
        let options = self.common.options()?;
        let failed = |error| Failure::artifact(&error);
        let repository = Repository::open(&self.reference, &options).map_err(failed)?;
        let (root, _) = repository.root(&options).await.map_err(failed)?;
        let depth = if self.recursive { DEEPEST } else { 1 };
        let found = discover(&repository, &root.digest, self.artifact_type.as_deref(), depth).await.map_err(failed)?;
        let name = name(&self.reference).map_err(failed)?;
        let printed = match self.json {
            true => print_json(&name, &root, &found),
            false => print_tree(&format!("{name}@{}", root.digest), &found),
        };
        Failure::of_output(printed)
    }
}

/// The reference without tag and digest.
fn name(reference: &str) -> Result<String, crate::error::Error> {
    Ok(match reference.parse()? {
        Reference::Registry(reference) => format!("{}/{}", reference.registry, reference.repository),
        Reference::Layout(layout) => layout.directory.display().to_string(),
    })
}

fn print_json(name: &str, root: &Descriptor, found: &[Attached]) -> io::Result<()> {
    fn entry_of(name: &str, mut entry: Value, digest: &str, attached: &[Attached]) -> Value {
        let below = attached.iter().map(|below| {
            let Attached { referrer, attached } = below;
            entry_of(name, referrer.to_json(), referrer.descriptor.digest.as_str(), attached)
        });
        let below: Vec<Value> = below.collect();
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("reference".to_owned(), format!("{name}@{digest}").into());
            fields.insert("referrers".to_owned(), below.into());
        }
        entry
    }
    let digest = root.digest.as_str();
    let own = json!({ "mediaType": root.media_type, "digest": digest, "size": root.size });
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &entry_of(name, own, digest, found))?;
    writeln!(out)
}

struct Branch {
    label: String,
    branches: Vec<Branch>,
}

fn print_tree(root: &str, found: &[Attached]) -> io::Result<()> {
    let mut out = String::new();
    draw(&branches(found), "", &mut out);
    write!(io::stdout().lock(), "{}\n{out}", printable(root))
}

/// By type; all text is somebody else's.
fn branches(found: &[Attached]) -> Vec<Branch> {
    let mut types: Vec<Branch> = Vec::new();
    for Attached { referrer, attached } in found {
        let label = match referrer.artifact_type.as_str() {
            "" => "(no type)".to_owned(),
            artifact_type => printable(artifact_type),
        };
        let mut below = Vec::new();
        let annotations = &referrer.descriptor.annotations;
        if !annotations.is_empty() {
            let line = |(key, value): (&String, &String)| Branch {
                label: printable(&format!("{key}: {value}")),
                branches: Vec::new(),
            };
            below.push(Branch { label: "[annotations]".to_owned(), branches: annotations.iter().map(line).collect() });
        }
        below.extend(branches(attached));
        let branch = Branch { label: referrer.descriptor.digest.to_string(), branches: below };
        match types.iter_mut().find(|known| known.label == label) {
            Some(known) => known.branches.push(branch),
            None => types.push(Branch { label, branches: vec![branch] }),
        }
    }
    types
}

fn draw(branches: &[Branch], before: &str, out: &mut String) {
    let last = branches.len().saturating_sub(1);
    for (number, Branch { label, branches }) in branches.iter().enumerate() {
        let (corner, line) = if number == last { ("└── ", "    ") } else { ("├── ", "│   ") };
        *out += &format!("{before}{corner}{label}\n");
        draw(branches, &format!("{before}{line}"), out);
    }
}
