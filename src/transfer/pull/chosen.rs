//! What a user has named: layers, and what is in them.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::mount::{Failed, Found, Holds, Ino, Kind, Mount};

/// What is to be pulled.
#[derive(Default)]
pub struct Chosen {
    /// Numbers of layers that are wanted whole.
    pub layers: BTreeSet<usize>,
    /// Files and folders in layers, and configs.
    pub members: Vec<Found>,
    /// What could not be looked into.
    pub failed: Vec<Failed>,
}

/// Layers by title, digest or path; files and folders by path; globs over paths. Nothing named is all layers, or all of
/// the tree.
///
/// # Errors
/// If one of them names nothing.
pub async fn choose(mount: &Mount, wanted: &[Vec<u8>], tree: bool) -> Result<Chosen> {
    let mut chosen = Chosen::default();
    if wanted.is_empty() && tree {
        take(mount, Found { path: Vec::new(), ino: Ino::ROOT, kind: Kind::Directory }, &mut chosen).await?;
    } else if wanted.is_empty() {
        chosen.layers.extend(0..mount.layer_count());
    }
    for wanted in wanted {
        let text = std::str::from_utf8(wanted).unwrap_or_default();
        let mut named = Vec::new();
        for number in 0..mount.layer_count() {
            let blob = mount.blob_of_layer(number)?;
            if [blob.digest.as_str(), blob.digest.short()].contains(&text) || blob.title() == Some(text) {
                named.push(number);
            }
        }
        if !named.is_empty() {
            chosen.layers.extend(named);
            continue;
        }
        for found in mount.find(wanted, &mut chosen.failed).await? {
            take(mount, found, &mut chosen).await?;
        }
    }
    Ok(chosen)
}

/// A folder that the manifest makes stands for the layers below it.
async fn take(mount: &Mount, found: Found, chosen: &mut Chosen) -> Result<()> {
    let mut waiting = vec![found];
    while let Some(found) = waiting.pop() {
        match mount.holds(found.ino)? {
            Holds::Layer(number) => {
                chosen.layers.insert(number);
            }
            Holds::Member(_) | Holds::Config(_) => chosen.members.push(found),
            Holds::Directory => waiting.extend(below(mount, &found).await?),
        }
    }
    Ok(())
}

async fn below(mount: &Mount, directory: &Found) -> Result<Vec<Found>> {
    let path = |name: &[u8]| match directory.ino {
        Ino::ROOT => name.to_vec(),
        _ => [&directory.path, &b"/"[..], name].concat(),
    };
    let children = mount.children(directory.ino).await?;
    Ok(children.into_iter().map(|(name, ino, kind)| Found { path: path(&name), ino, kind }).collect())
}
