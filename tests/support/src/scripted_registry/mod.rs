//! A registry inside the test: counts what is asked of it, and answers wrongly when told to.
//!
//! It listens on a loopback port of its own with a thread of its own; dropped, it is gone.
//!
//! ```
//! use eo_mount_testing::{ALWAYS, Artifact, Fault, Matcher, ScriptedRegistry};
//!
//! let registry = ScriptedRegistry::start();
//! Artifact::new()
//!     .config(r#"{"dataset":"PASTIS"}"#, "application/vnd.oci.image.config.v1+json")
//!     .tar("10000.tar", &b"the bytes of a tar"[..])
//!     .push(&registry, "pastis", "sample");
//! let fault = registry.fault(Matcher::blobs().nth(2), Fault::ShortBody, ALWAYS);
//! // … eo-mount registry.reference("pastis:sample") …
//! assert_eq!((registry.blob_requests(), registry.blob_bytes(), fault.met()), (0, 0, 0));
//! ```

mod answer;
mod artifact;
mod body;
mod content;
mod fault;
mod gate;
pub mod profiles;
mod request;
mod serve;
mod state;
mod uploads;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

pub use artifact::{Artifact, CONFIG_TYPE, Descriptor, MANIFEST_TYPE, TAR_TYPE};
pub use content::Fill;
pub use fault::{ALWAYS, Fault, Matcher, Script};
pub use gate::Gate;
pub use request::{Kind, Request};
pub use uploads::Takes;

use crate::server_thread::ServerThread;
use crate::sha256;
use content::Content;
use fault::Planned;
use serve::Command;
use state::{Manifest, Shared};

/// See the module.
pub struct ScriptedRegistry {
    address: SocketAddr,
    shared: Shared,
    commands: UnboundedSender<Command>,
    _thread: ServerThread,
}

impl ScriptedRegistry {
    /// An empty registry on a free port of 127.0.0.1, open to everybody.
    pub fn start() -> Self {
        let listener = serve::listener();
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Shared::default();
        let (commands, orders) = tokio::sync::mpsc::unbounded_channel();
        let for_server = shared.clone();
        let name = format!("registry-{}", address.port());
        let thread = ServerThread::start(&name, move || serve::serve(listener, for_server, orders));
        Self { address, shared, commands, _thread: thread }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:port/name`; the name with its tag or digest.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Where a blob is to be had, for redirects.
    pub fn blob_url(&self, repository: &str, digest: &str) -> String {
        format!("http://{}/v2/{repository}/blobs/{digest}", self.address)
    }

    /// To be had in every repository.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let size = bytes.len() as u64;
        self.shared.lock().blobs.insert(digest.clone(), Content::Held(bytes));
        self.descriptor(digest, size)
    }

    /// Bytes under a digest that is not theirs.
    pub fn put_blob_as(&self, digest: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        self.shared.lock().blobs.insert(digest.to_owned(), Content::Held(bytes));
        self.descriptor(digest.to_owned(), size)
    }

    /// Content that is made when it is asked for; nobody checks the digest.
    pub fn put_sparse_blob(
        &self,
        size: u64,
        digest: &str,
        fill: impl Fn(u64, &mut [u8]) + Send + Sync + 'static,
    ) -> Descriptor {
        let content = Content::Made { size, fill: Arc::new(fill) };
        self.shared.lock().blobs.insert(digest.to_owned(), content);
        self.descriptor(digest.to_owned(), size)
    }

    fn descriptor(&self, digest: String, size: u64) -> Descriptor {
        Descriptor { digest, size, media_type: TAR_TYPE.to_owned(), annotations: BTreeMap::new() }
    }

    /// The bytes need not be a manifest. Served as their `mediaType` says, or as an image manifest. The digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        self.shared.lock().take_manifest(repository, tag, bytes, None)
    }

    /// From now on it can be written to, too.
    pub fn take_uploads(&self, takes: Takes) {
        self.shared.lock().uploads = Some(uploads::Uploads::new(takes));
    }

    /// The uploads that were begun are known no more.
    pub fn expire_uploads(&self) {
        if let Some(uploads) = &mut self.shared.lock().uploads {
            uploads.forget();
        }
    }

    /// Bytes of blobs that came with requests.
    pub fn received(&self) -> u64 {
        self.requests_of(Kind::Upload).iter().map(|request| request.received).sum()
    }

    /// All of a blob that is here.
    pub fn blob(&self, digest: &str) -> Option<Bytes> {
        let content = self.shared.lock().blobs.get(digest).cloned()?;
        Some(content.read(0..content.size()))
    }

    /// Bytes under a digest that is not theirs.
    pub fn put_manifest_as(&self, repository: &str, digest: &str, bytes: impl Into<Bytes>) {
        let manifest = Manifest { media_type: MANIFEST_TYPE.to_owned(), bytes: bytes.into() };
        let mut state = self.shared.lock();
        state.manifests.entry(repository.to_owned()).or_default().insert(digest.to_owned(), manifest);
    }

    /// The digest of what a tag names.
    pub fn tagged(&self, repository: &str, tag: &str) -> String {
        self.shared.lock().tags[&(repository.to_owned(), tag.to_owned())].clone()
    }

    /// The blob is known no more.
    pub fn remove_blob(&self, digest: &str) {
        self.shared.lock().blobs.remove(digest);
    }

    /// The next `times` requests that fit meet this fault. Of several that fit, the first one set counts;
    /// delays join in.
    pub fn fault(&self, matcher: Matcher, fault: Fault, times: u32) -> Script {
        let (planned, script) = Planned::new(matcher, fault, times);
        self.shared.lock().faults.push(planned);
        script
    }

    /// Every blob comes in drops, so long before each 64 KiB, whatever else is wrong with it.
    pub fn trickle_blobs(&self, pace: Duration) {
        self.shared.lock().pace = Some(pace);
    }

    /// Right answers from now on. What stalls goes on stalling.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// All requests since the start or the last [`reset`](Self::reset), in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.iter().map(|record| record.snapshot()).collect()
    }

    /// Requests of one kind.
    pub fn requests_of(&self, kind: Kind) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.kind == kind).collect()
    }

    /// Requests for blobs that are no config.
    pub fn blob_requests(&self) -> usize {
        self.requests_of(Kind::Blob).len()
    }

    /// Bytes of blobs sent, configs apart.
    pub fn blob_bytes(&self) -> u64 {
        self.requests_of(Kind::Blob).iter().map(|request| request.sent).sum()
    }

    /// Forgets the requests and connections; keeps blobs, manifests, faults and tokens.
    pub fn reset(&self) {
        let mut state = self.shared.lock();
        state.requests.clear();
        state.connections = 0;
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.shared.lock().connections
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.lock().open
    }

    /// From now on `/v2/` wants a bearer token, which `/token` gives to everybody.
    pub fn require_token(&self) {
        self.shared.lock().tokens.get_or_insert_default();
    }

    /// From now on `/v2/` wants what this says.
    pub fn guard(&self, gate: Gate) {
        let mut state = self.shared.lock();
        state.tokens = Some(HashSet::new());
        state.guarded = gate::Guarded::new(gate);
    }

    /// The tokens handed out so far are worth nothing any more.
    pub fn expire_tokens(&self) {
        if let Some(tokens) = &mut self.shared.lock().tokens {
            *tokens = HashSet::new();
        }
    }

    /// Tokens handed out since the start.
    pub fn tokens_issued(&self) -> u32 {
        self.shared.lock().tokens_issued
    }

    /// Answers of the token service do not tell how long a token lives.
    pub fn hide_token_lifetime(&self) {
        self.shared.lock().guarded.gate.untold = true;
    }

    /// Tokens are handed out by another server alone.
    pub fn take_tokens_from(&self, service: &Self) {
        self.require_token();
        self.shared.lock().token_origin = Some(format!("http://{}", service.address));
        service.shared.lock().tokens_for = Some(self.shared.clone());
    }

    /// The other has all blobs that are here now.
    pub fn share_blobs_with(&self, other: &Self) {
        let state = self.shared.lock();
        let mut there = other.shared.lock();
        there.blobs.extend(state.blobs.iter().map(|(digest, content)| (digest.clone(), content.clone())));
        there.configs.extend(state.configs.iter().cloned());
    }

    /// From now on blobs are redirected to this host, which has those that are here now, with a signature in the query.
    pub fn keep_blobs_at(&self, storage: &Self) {
        self.share_blobs_with(storage);
        storage.shared.lock().signatures.get_or_insert_default();
        self.shared.lock().storage = Some((format!("http://{}", storage.address), storage.shared.clone()));
    }

    /// The signatures given so far are worth nothing any more.
    pub fn expire_signatures(&self) {
        self.shared.lock().signatures = Some(HashSet::new());
    }

    /// Each request for the tag is answered with the next of these manifests.
    pub fn move_tag_each_time(&self, repository: &str, tag: &str, digests: &[&str]) {
        let digests = digests.iter().map(|digest| (*digest).to_owned()).collect();
        self.shared.lock().moving.insert((repository.to_owned(), tag.to_owned()), digests);
    }

    /// Closes the port and all connections: new ones are refused.
    pub fn go_down(&self) {
        self.command(Command::GoDown);
    }

    /// Listens on the same port again.
    pub fn come_up(&self) {
        self.command(Command::ComeUp);
    }

    fn command(&self, command: impl FnOnce(mpsc::Sender<()>) -> Command) {
        let (done, when_done) = mpsc::channel();
        let sent = self.commands.send(command(done));
        if sent.is_err() || when_done.recv_timeout(Duration::from_secs(10)).is_err() {
            panic!("the scripted registry's thread is gone or stuck");
        }
    }
}
