//! Carries bytes in both directions, each in its time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::heads::Heads;
use super::line::Line;
use super::timer::Timer;
use super::{Counters, Cuts, Shape};
use crate::fixtures::noise_word;

/// Bytes between the server and us: enough for loopback, and little for a server to send in vain.
const SERVER_BUFFER: u32 = 256 << 10;
const LARGEST_STEP: usize = 64 << 10;
const SMALLEST_STEP: usize = 1460;

pub(super) async fn run(listener: std::net::TcpListener, target: SocketAddr, shape: Shape, counters: Arc<Counters>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket can be watched");
    let line = || shape.bits_per_second.map(|rate| Arc::new(Line::new(rate)));
    let (up, down) = (line(), line());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else {
                    // Too many open files: later there may be fewer.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let number = counters.connections.fetch_add(1, Ordering::AcqRel);
                let connection = Connection {
                    shape: shape.clone(),
                    opened: Instant::now() + shape.round_trip,
                    cut: shape.cuts.map(|cuts| cut_after(cuts, number)),
                    lines: [up.clone(), down.clone()],
                    counters: Arc::clone(&counters),
                };
                connections.spawn(connection.relay(client, target));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Bytes until the cut: exponentially distributed, which is what a constant chance at every byte comes to.
fn cut_after(cuts: Cuts, number: u64) -> u64 {
    let uniform = (noise_word(cuts.seed, number) >> 11) as f64 / (1_u64 << 53) as f64;
    let mebibytes = -(1.0 - uniform).ln() / cuts.per_mebibyte;
    (mebibytes * f64::from(1 << 20)) as u64
}

struct Connection {
    shape: Shape,
    /// When the handshake would be done.
    opened: Instant,
    cut: Option<u64>,
    /// Up and down.
    lines: [Option<Arc<Line>>; 2],
    counters: Arc<Counters>,
}

impl Connection {
    async fn relay(self, client: TcpStream, target: SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket can be made");
        let _ = socket.set_recv_buffer_size(SERVER_BUFFER);
        let Ok(server) = socket.connect(target).await else {
            Timer::new().until(self.opened).await;
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let [up, down] = [0, 1].map(|direction| self.direction(direction));
        let own = Arc::new(AtomicU64::new(0));
        self.counters.down_of_each.lock().expect("nothing panics with it in hand").push(Arc::clone(&own));
        let (sent, received) = ([&self.counters.up], [&self.counters.down, &own]);
        let upward = up.carry(from_client, to_server, None, &sent, Some(&self.counters.requests));
        let downward = down.carry(from_server, to_client, self.cut, &received, None);
        tokio::pin!(upward, downward);
        let (ended, upward_ended) = tokio::select! {
            ended = &mut downward => (ended, false),
            _ = &mut upward => (downward.await, true),
        };
        if ended == Ended::Cut {
            // Returning drops both directions.
            self.counters.cut.fetch_add(1, Ordering::AcqRel);
        } else if !upward_ended {
            // The client may still have something to say.
            upward.await;
        }
    }

    fn direction(&self, direction: usize) -> Direction {
        let own = self.shape.per_connection.map(|rate| Arc::new(Line::new(rate)));
        let lines: Vec<Arc<Line>> = self.lines[direction].iter().cloned().chain(own).collect();
        let slowest = lines.iter().map(|line| line.bits_per_second()).min();
        // What is on the way in a round trip, twice, and at least what sockets hold anyway.
        let on_the_way = slowest.map(|rate| rate as f64 / 8.0 * self.shape.round_trip.as_secs_f64());
        let window = on_the_way.map_or(16 << 20, |bytes| (2.0 * bytes) as usize).max(1 << 20);
        // Small enough that connections take turns every two milliseconds.
        let step = slowest.map_or(LARGEST_STEP, |rate| (rate / 8 / 500) as usize);
        Direction {
            delay: self.shape.round_trip / 2,
            opened: self.opened,
            lines,
            window: Arc::new(Semaphore::new(window)),
            step: step.clamp(SMALLEST_STEP, LARGEST_STEP),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Cut,
}

struct Direction {
    delay: Duration,
    opened: Instant,
    lines: Vec<Arc<Line>>,
    /// Bytes that may be on the way.
    window: Arc<Semaphore>,
    step: usize,
}

struct OnTheWay {
    bytes: Bytes,
    arrives: Instant,
    _window: OwnedSemaphorePermit,
}

impl Direction {
    async fn carry(
        &self,
        from: OwnedReadHalf,
        to: OwnedWriteHalf,
        cut: Option<u64>,
        counters: &[&AtomicU64],
        requests: Option<&AtomicU64>,
    ) -> Ended {
        let (send, receive) = mpsc::unbounded_channel();
        let (ended, ()) = tokio::join!(self.take_up(from, send, cut), deliver(receive, to, counters, requests));
        ended
    }

    async fn take_up(&self, mut from: OwnedReadHalf, send: mpsc::UnboundedSender<OnTheWay>, cut: Option<u64>) -> Ended {
        let mut timer = Timer::new();
        let mut buffer = vec![0; self.step];
        let mut left = cut.unwrap_or(u64::MAX);
        timer.until(self.opened).await;
        loop {
            let mut window =
                Arc::clone(&self.window).acquire_many_owned(self.step as u32).await.expect("nobody closes the window");
            let count = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ended::Closed,
                Ok(count) => usize::try_from(left).unwrap_or(usize::MAX).min(count),
            };
            left -= count as u64;
            drop(window.split(self.step - count));
            let now = Instant::now();
            let through = self.lines.iter().map(|line| line.take(now, count)).max().unwrap_or(now);
            let bytes = Bytes::copy_from_slice(&buffer[..count]);
            if send.send(OnTheWay { bytes, arrives: through + self.delay, _window: window }).is_err() {
                return Ended::Closed;
            }
            if left == 0 {
                return Ended::Cut;
            }
            timer.until(through).await;
        }
    }
}

async fn deliver(
    mut receive: mpsc::UnboundedReceiver<OnTheWay>,
    mut to: OwnedWriteHalf,
    counters: &[&AtomicU64],
    requests: Option<&AtomicU64>,
) {
    let mut timer = Timer::new();
    let mut heads = Heads::default();
    while let Some(part) = receive.recv().await {
        timer.until(part.arrives).await;
        if to.write_all(&part.bytes).await.is_err() {
            return;
        }
        for counter in counters {
            counter.fetch_add(part.bytes.len() as u64, Ordering::AcqRel);
        }
        if let Some(requests) = requests {
            requests.fetch_add(heads.end_in(&part.bytes), Ordering::AcqRel);
        }
    }
    let _ = to.shutdown().await;
}
