//! A slow link on loopback: a TCP proxy that adds a round trip and a line rate, where the kernel has no shaper.
//!
//! ```
//! use std::time::Duration;
//!
//! use eo_mount_testing::{Link, ScriptedRegistry, Shape};
//!
//! let registry = ScriptedRegistry::start();
//! let link = Link::new(registry.address(), Shape {
//!     round_trip: Duration::from_millis(20),
//!     bits_per_second: Some(1_000_000_000),
//!     per_connection: Some(200_000_000),
//!     ..Shape::default()
//! });
//! // … eo-mount link.reference("pastis:sample") …
//! println!("{} connections, {} requests, {} bytes", link.connections(), link.requests(), link.bytes_down());
//! ```
//!
//! What it is like: every byte takes half a round trip in each direction; a new connection takes a whole one before
//! its first byte leaves; all connections share the line in each direction, first come first served; a receiver that
//! does not read stops its sender after about twice what the line holds. What it is not like: TCP's slow start and
//! losses do not exist, and a server that refuses a connection shows as one that is closed at once.
//!
//! Measured on 2 cores with 20 ms and 1 Gbit/s: an exchange takes 20.1 to 20.3 ms, 125 MB take 1.04 s over one
//! connection and over eight (1.04 s is the line's own time with the handshake); with no shape, 1.6 GiB/s.

mod heads;
mod line;
mod relay;
mod timer;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server_thread::ServerThread;

/// What the link is like. The default is a plain relay.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Half of it in each direction.
    pub round_trip: Duration,
    /// Of all connections together, in each direction; none: as fast as it goes.
    pub bits_per_second: Option<u64>,
    /// Of each connection, in each direction.
    pub per_connection: Option<u64>,
    /// Connections that break.
    pub cuts: Option<Cuts>,
}

/// Breaks connections by chance, but always the same: the nth connection of a link breaks after a number of bytes
/// from the server that depends on the seed and on n alone.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// Another seed, other cuts.
    pub seed: u64,
    /// The mean number of cuts in a MiB from the server.
    pub per_mebibyte: f64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    cut: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    down_of_each: Mutex<Vec<Arc<AtomicU64>>>,
}

/// See the module. Dropped, it is gone with all its connections.
pub struct Link {
    address: SocketAddr,
    counters: Arc<Counters>,
    _thread: ServerThread,
}

impl Link {
    /// A link to this `host:port` on a free port of 127.0.0.1.
    pub fn new(target: impl AsRef<str>, shape: Shape) -> Self {
        let target = target.as_ref();
        let to = target.to_socket_addrs().ok().and_then(|mut addresses| addresses.find(SocketAddr::is_ipv4));
        let to = to.unwrap_or_else(|| panic!("{target} is no host:port with an IPv4 address"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on the loopback interface");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let counters = Arc::new(Counters::default());
        let for_relay = Arc::clone(&counters);
        let name = format!("link-{}", address.port());
        let thread = ServerThread::start(&name, move || relay::run(listener, to, shape, for_relay));
        Self { address, counters, _thread: thread }
    }

    /// `127.0.0.1:port`, which leads to the target.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:port/name`.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::Acquire)
    }

    /// HTTP/1 requests so far, if none has a body: empty lines that clients sent.
    pub fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Acquire)
    }

    /// Connections that were cut by chance.
    pub fn cut(&self) -> u64 {
        self.counters.cut.load(Ordering::Acquire)
    }

    /// Bytes delivered to clients, with HTTP's headers.
    pub fn bytes_down(&self) -> u64 {
        self.counters.down.load(Ordering::Acquire)
    }

    /// The same for each connection, in the order of their opening.
    pub fn bytes_down_of_each(&self) -> Vec<u64> {
        let each = self.counters.down_of_each.lock().expect("nothing panics with it in hand");
        each.iter().map(|bytes| bytes.load(Ordering::Acquire)).collect()
    }

    /// Bytes delivered to the server.
    pub fn bytes_up(&self) -> u64 {
        self.counters.up.load(Ordering::Acquire)
    }
}
