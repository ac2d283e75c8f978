//! From a resolved reference to a mount: name the layers. No layer is fetched.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::attached::Attached;
use super::indexing::{Indexing, read_head};
use super::layer::{Layer, Sources};
use super::manifests::Resolved;
use super::names::{Parts, Shape, places};
use super::oci_view::OciView;
use super::resolve::Artifact;
use super::stored;
use super::tree::{Node, Tree};
use super::zip::is_zip;
use super::{AttachedIndex, LayerNode, Mount, Options, not_done};
use crate::blob::content::ContentLimits;
use crate::blob::{Background, BlobSource, Compression};
use crate::cache::{CacheFolder, FolderTurns, Indexes, Manifests};
use crate::error::Result;
use crate::index::{BLOCK, Limits, Scanner, Step, Tuning};
use crate::oci::CREATED;
use crate::oci::{Descriptor, Reference, names_by_layer_digest};

/// Requests under way at once for one layer that is indexed ahead: few, so that neighbouring headers become one request.
const AHEAD_REQUESTS: usize = 4;
/// Bytes that have arrived for one of them, and are not passed.
const AHEAD_STORE: u64 = 2 << 20;
/// Layers looked into at once where the manifest does not tell what they are.
const LOOKS: usize = 16;
/// Time for all of them when the registry cannot be reached: for what is in the cache.
const GLANCE: Duration = Duration::from_secs(2);
/// Passes over compressed layers at one time: each keeps a core busy, and holds 8 MiB of the blob and its decoder's window.
const PASSES: usize = 2;
/// The part of the timeout that looking for an attached index may take, or that a cache folder's disk has to wake.
const PATIENCE: u32 = 4;
/// Bytes of a compressed blob that give its first header, for certain.
const FIRST_BLOCKS: u64 = 1 << 20;

impl Mount {
    /// Resolves the reference once and checks manifests and configs against their digests, within the timeout.
    pub async fn open(reference: &str, options: Options) -> Result<Self> {
        let deadline = Instant::now() + options.timeout;
        let cache_dir = options.cache_dir.as_deref().map(|path| (path, FolderTurns::new(path)));
        let folder = match &cache_dir {
            Some((path, turns)) => {
                CacheFolder::open_if_usable(path, options.cache_size, turns, options.timeout / PATIENCE).await
            }
            None => None,
        };
        let manifests = cache_dir.as_ref().map(|(path, turns)| Arc::new(Manifests::new(path, turns)));
        // A stored index may be of bytes that nobody has checked.
        let cache_dir = cache_dir.filter(|_| !options.verify_blobs);
        let indexes = cache_dir.map(|(path, turns)| Arc::new(Indexes::new(path, &turns)));
        let artifact = Artifact::resolve(reference, &options, folder.as_ref(), manifests.as_ref(), deadline).await?;
        let Artifact { mut parts, headers, data, chunks, local, traffic, reachable, repository, digested } = artifact;
        if let Some((manifests, indexes)) = manifests.zip(indexes.as_ref()) {
            manifests.clean(SystemTime::now());
            indexes.clean(SystemTime::now());
        }
        let limits = Limits { index_bytes: options.memory, ..Limits::default() };
        // One that is attached may be of bytes that nobody has checked, too. Who did not answer just now is not asked for more.
        let attached = match options.attached {
            AttachedIndex::Found if options.verify_blobs || !(reachable || options.offline) => None,
            AttachedIndex::Ignored => None,
            AttachedIndex::Found | AttachedIndex::Pinned(_) => {
                let patience = options.timeout / PATIENCE;
                Some(Arc::new(Attached::new(repository.clone(), chunks.clone(), limits, patience, &parts)))
            }
        };
        if let (AttachedIndex::Pinned(digest), Some(attached)) = (&options.attached, &attached) {
            let pinning = attached.pin(digest, digested.as_deref());
            timeout_at(deadline, pinning).await.unwrap_or_else(|_| Err(not_done(options.timeout, digest)))?;
        }
        let index_memory = Arc::default();
        let folder = folder.map(Arc::new);
        let habits = Arc::default();
        let ahead = Sources {
            headers: Arc::new(Background::new(headers.clone(), (options.connections * 3 / 4).max(1))),
            data: data.clone(),
            chunks: chunks.clone(),
            local: local.clone(),
            folder: folder.clone(),
            indexes: indexes.clone(),
            attached: attached.clone(),
            indexing: Indexing {
                limits: Limits { index_bytes: options.memory / 16, ..limits },
                tuning: Tuning { store: AHEAD_STORE, ..Tuning::default() },
                requests: AHEAD_REQUESTS,
                beside_content: options.connections,
                chunks: chunks.clone(),
                habits: Arc::clone(&habits),
            },
            index_memory: Arc::clone(&index_memory),
            content_limits: ContentLimits::default(),
            unpacks: false,
            passes: Semaphore::new(0),
        };
        let indexing = Indexing {
            limits,
            tuning: Tuning::default(),
            requests: options.connections,
            beside_content: options.connections,
            chunks: chunks.clone(),
            habits,
        };
        let sources = Arc::new(Sources {
            headers,
            data,
            chunks,
            local,
            folder,
            indexes,
            attached,
            indexing,
            index_memory,
            content_limits: ContentLimits::default(),
            unpacks: true,
            passes: Semaphore::new(PASSES),
        });
        let mut first = 0;
        for part in &mut parts {
            part.layers = first..first + part.manifest.layers.len();
            first = part.layers.end;
        }
        let layers = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.manifest.layers)).collect();
        let deadline = if reachable { deadline } else { deadline.min(Instant::now() + GLANCE) };
        let layers = with_shapes(layers, &sources, deadline).await;
        let tree = build_tree(&parts, &layers);
        let mut layer_nodes = vec![None; layers.len()];
        let walk: Vec<usize> = tree.layers().iter().map(|(number, _)| *number).collect();
        let in_order = walk.iter().filter_map(|number| layers.get(*number)).map(|(layer, _)| layer.clone());
        sources.data.in_order(in_order.collect());
        for (place, (number, node)) in tree.layers().into_iter().enumerate() {
            if let Some(layer) = layer_nodes.get_mut(number) {
                *layer = Some(LayerNode { node, place });
            }
        }
        let oci = match options.oci {
            true => Some(OciView::new(
                repository.clone(),
                tag(reference)?.as_deref(),
                &parts,
                layers.iter().map(|(layer, _)| layer),
            )?),
            false => None,
        };
        // What an index does not say is as new as the newest of its manifests.
        let created = |part: &Resolved| humantime::parse_rfc3339(part.descriptor.annotations.get(CREATED)?).ok();
        let created = parts.first().and_then(created).or_else(|| parts.iter().filter_map(created).max());
        Ok(Self {
            options,
            manifests: parts,
            layers: layers.into_iter().map(|(layer, _)| Arc::new(Layer::new(layer))).collect(),
            layer_nodes,
            sources,
            digested,
            ahead: Arc::new(ahead),
            walk,
            look_ahead: Mutex::default(),
            looks: AtomicU64::new(1),
            repository,
            tree,
            oci,
            created: created.unwrap_or(SystemTime::UNIX_EPOCH),
            traffic,
            given: AtomicU64::new(0),
            on_wrong: OnceLock::new(),
        })
    }
}

fn tag(reference: &str) -> Result<Option<String>> {
    Ok(match reference.parse()? {
        Reference::Registry(reference) => reference.tag,
        Reference::Layout(layout) => layout.tag,
    })
}

/// Looks into those layers of which the manifest does not tell whether they are archives, until `deadline`.
/// One that cannot be read now is shown as a file; whoever reads it is told why.
async fn with_shapes(layers: Vec<Descriptor>, sources: &Arc<Sources>, deadline: Instant) -> Vec<(Descriptor, Shape)> {
    let mut unknown = 0;
    let shapes = stream::iter(layers)
        .map(async |layer| {
            let shape = match Shape::of(&layer) {
                Some(shape) => Ok(shape),
                None => timeout_at(deadline, shape_of_content(&layer, sources)).await.map_err(|_| ()).flatten(),
            };
            (layer, shape)
        })
        .buffered(LOOKS)
        .map(|(layer, shape)| {
            unknown += usize::from(shape.is_err());
            (layer, shape.unwrap_or(Shape::File))
        })
        .collect()
        .await;
    if unknown > 0 {
        tracing::warn!("{unknown} layers could not be looked into; they are shown as files, archives or not");
    }
    shapes
}

async fn shape_of_content(layer: &Descriptor, sources: &Arc<Sources>) -> Result<Shape, ()> {
    if stored::contents(layer, sources).await.is_some() {
        return Ok(Shape::Directory);
    }
    // In chunks, which are kept: a later mount knows it without a request.
    let head = read_head(sources.chunks.as_ref(), layer).await.map_err(|_| ())?;
    // Many formats are ZIP archives inside; one whose name says so is better left alone.
    let has_ending = layer.title().is_some_and(|title| title.rsplit('/').next().unwrap_or(title).contains('.'));
    if is_zip(&head) {
        return Ok(if has_ending { Shape::File } else { Shape::Directory });
    }
    let head = match Compression::of(&head) {
        Some(compression) => match compression.head(&head) {
            // A block of zstd or bzip2 is longer than what was read.
            short if short.len() < BLOCK as usize => {
                let longer = sources.chunks.read(layer, 0..layer.size.min(FIRST_BLOCKS)).await;
                longer.map_or(short.into(), |longer| compression.head(&longer).into())
            }
            head => head.into(),
        },
        None => head,
    };
    // Of an unpacked head the size behind it is not known; all that matters here is the first header.
    match Scanner::open_ended(sources.indexing.limits).step(0, &head) {
        Ok(Step::Member(_) | Step::Need(_)) if head.len() >= BLOCK as usize => Ok(Shape::Directory),
        _ => Ok(Shape::File),
    }
}

fn build_tree(parts: &[Resolved], layers: &[(Descriptor, Shape)]) -> Tree {
    let mut nodes: Vec<(Parts, Node)> = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let own = layers.get(part.layers.clone()).unwrap_or_default();
        let below = |place: Parts| part.folder.iter().cloned().chain(place).collect();
        nodes.push((part.folder.clone(), Node::Manifest(number)));
        let all_titled = own.iter().all(|(layer, _)| layer.title().is_some());
        let names = if all_titled { HashMap::new() } else { names_by_layer_digest(&part.config) };
        let (places, warnings) = places(own, &names);
        for warning in warnings {
            tracing::warn!("{}", crate::error::printable(&warning));
        }
        let config = vec!["config.json".to_owned()];
        let taken = places.iter().flatten().any(|place| place.first() == config.first());
        for (place, (layer, (_, shape))) in places.into_iter().zip(part.layers.clone().zip(own)) {
            let node = match shape {
                Shape::Directory => Node::Layer(layer),
                Shape::File => Node::LayerFile(layer),
            };
            nodes.extend(place.map(|place| (below(place), node)));
        }
        if part.manifest.config.is_some() && !taken {
            nodes.push((below(config), Node::Config(number)));
        }
    }
    Tree::new(nodes)
}
