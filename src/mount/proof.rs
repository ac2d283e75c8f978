//! What is given out of an attached index before it is proven, and what becomes of it when it is wrong.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::layer::{Contents, Sources};
use super::tree::{Node, NodeId};
use super::{Ino, Mount, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, Headers, LayerIndex, Scanner, Step};
use crate::oci::Digest;

/// Bytes of headers looked at to prove one member.
const WINDOW: u64 = 64 << 10;
/// Members passed over on the way to it: those that a later one of their name has replaced.
const STEPS: usize = 100;

/// Told the inodes, and the directories with names in them, of which what a kernel keeps is wrong.
pub type OnWrong = dyn Fn(Vec<Ino>, Vec<(Ino, Vec<u8>)>) + Send + Sync;

/// What is not proven of an index that somebody has attached.
pub struct Claim {
    headers: Headers,
    proven: Mutex<HashSet<EntryId>>,
}

/// What a member's own header says of a claim.
pub enum Proof {
    Holds,
    /// Nothing: only all headers together could tell.
    Open,
    /// Something else.
    Wrong(String),
}

impl Claim {
    pub fn of(index: &LayerIndex) -> Self {
        Self { headers: Headers::of(index), proven: Mutex::default() }
    }
}

impl Contents {
    /// Whether bytes of this member may be given out.
    pub fn is_proven(&self, entry: EntryId) -> bool {
        let proven = |claim: &Claim| claim.proven.lock().unwrap_or_else(PoisonError::into_inner).contains(&entry);
        self.claim.as_ref().is_none_or(proven)
    }

    /// # Errors
    /// The number is of an attached index that was wrong.
    pub fn is_there(&self, entry: EntryId) -> Result<()> {
        self.index.entry(entry).map(drop).ok_or_else(|| {
            let cause = "what its attached index said of this file was wrong";
            Error::new(ErrorKind::Corrupt, &self.blob.digest, cause).hint("look it up again")
        })
    }

    /// Reads the member's header, if it is not proven yet.
    ///
    /// # Errors
    /// The layer cannot be read.
    pub async fn prove(&self, entry: EntryId, sources: &Sources) -> Result<Proof> {
        let Some(claim) = self.claim.as_ref().filter(|_| !self.is_proven(entry)) else { return Ok(Proof::Holds) };
        let Some(data) = self.index.provable(entry) else { return Ok(Proof::Open) };
        // Around read-ahead: a header is no stream.
        let source = if self.is_plain(sources) { sources.chunks.as_ref() } else { self.source.as_ref() };
        let start = claim.headers.before(data);
        let size = self.blob.size;
        let mut scanner = Scanner::starting_at(start, size, sources.indexing.limits);
        let (mut at, mut window) = (start, Bytes::new());
        for _ in 0..STEPS {
            match scanner.step(at, &window) {
                Ok(Step::Member(member)) if member.next < data => {}
                Ok(Step::Member(member)) if self.index.is_of(entry, &member) => {
                    claim.proven.lock().unwrap_or_else(PoisonError::into_inner).insert(entry);
                    return Ok(Proof::Holds);
                }
                Ok(Step::Need(range)) => {
                    // Up to the data, which whoever wants it reads.
                    let end = data.min(range.start.saturating_add(WINDOW)).max(range.end).min(size);
                    window = match source.read(&self.blob, range.start..end).await {
                        Ok(bytes) => bytes,
                        // Of a compressed layer: it unpacks to something else.
                        Err(error) if error.kind == ErrorKind::Corrupt => return Ok(Proof::Wrong(error.to_string())),
                        Err(error) => return Err(error),
                    };
                    at = range.start;
                }
                Ok(Step::Member(_)) => return Ok(Proof::Wrong("there is another member".to_owned())),
                Ok(Step::End { .. }) => return Ok(Proof::Wrong("the archive ends before it".to_owned())),
                Err(error) => return Ok(Proof::Wrong(error.to_string())),
            }
        }
        Ok(Proof::Open)
    }
}

impl Mount {
    /// The contents of a layer of which this entry is proven, however long that takes: as they are, or after a fall back to what
    /// the layer itself says.
    pub(super) async fn proven(&self, number: usize, entry: EntryId) -> Result<Arc<Contents>> {
        let layer = self.layer(number)?;
        let contents = layer.contents(&self.sources).await?;
        let why = match contents.prove(entry, &self.sources).await? {
            Proof::Holds => return Ok(contents),
            Proof::Open => None,
            Proof::Wrong(why) => Some(why),
        };
        if !layer.distrust(&contents) {
            let digest = &layer.descriptor.digest;
            match why {
                Some(why) => tracing::warn!("layer {digest}: its attached index is wrong: {why}; it is indexed anew"),
                None => {
                    tracing::info!("layer {digest}: no header proves what its attached index says; it is indexed anew")
                }
            }
        }
        // One that was begun before may still be what is not believed any more.
        let contents = loop {
            let contents = layer.contents(&self.sources).await?;
            if contents.claim.is_none() {
                break contents;
            }
        };
        let changed = contents.take_changed();
        if let Some(call) = self.on_wrong.get().filter(|_| !changed.is_empty()) {
            let ino = |entry| Ino::of(Place::Entry { layer: number, entry });
            let names: Vec<_> = changed.into_iter().map(|(directory, name)| (ino(directory), name)).collect();
            call(names.iter().map(|(directory, _)| *directory).collect(), names);
        }
        Ok(contents)
    }

    /// Has this called when what a kernel keeps is wrong: with the inodes of a layer whose bytes turn out to be, and with the
    /// directories and names of one whose attached index was.
    pub fn on_wrong(self: &Arc<Self>, call: impl Fn(Vec<Ino>, Vec<(Ino, Vec<u8>)>) + Send + Sync + 'static) {
        let mount = Arc::downgrade(self);
        let call: Arc<OnWrong> = Arc::new(call);
        let _ = self.on_wrong.set(Arc::clone(&call));
        self.sources.chunks.on_wrong(move |digest| {
            if let Some(mount) = mount.upgrade() {
                call(mount.inodes_of(digest), Vec::new());
            }
        });
    }

    /// All that show bytes of this layer, as far as its index is in memory.
    fn inodes_of(&self, digest: &Digest) -> Vec<Ino> {
        let of_view = self.oci.iter().flat_map(|view| view.numbers_of(digest));
        let mut inodes: Vec<Ino> = of_view.map(|number| Ino::of(Place::Oci(number))).collect();
        for (number, layer) in self.layers.iter().enumerate().filter(|(_, layer)| layer.descriptor.digest == *digest) {
            let entries = layer.known().map_or(0, |contents| u32::try_from(contents.index.len()).unwrap_or(u32::MAX));
            inodes.extend((0..entries).map(|entry| Ino::of(Place::Entry { layer: number, entry: EntryId(entry) })));
            let is_it = |id: &NodeId| self.tree.node(*id) == Some(Node::LayerFile(number));
            inodes.extend((0..self.tree.len()).filter(is_it).map(|id| Ino::of(Place::Node(id))));
        }
        inodes
    }
}
