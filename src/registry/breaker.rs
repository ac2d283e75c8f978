//! What is known of a host: whether it asked for patience, and whether it answers at all. A host that is dead costs a
//! new read nothing; two probes a second find out when it is back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use reqwest::Url;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::retry::Failure;
use super::targets::shown;
use super::traffic::Traffic;
use super::transport::Clients;
use crate::error::{Error, ErrorKind};

/// Between two probes while somebody wants the host, and while nobody does.
const PROBE: Duration = Duration::from_millis(500);
const IDLE_PROBE: Duration = Duration::from_secs(10);
/// Without a read for so long nobody wants it.
const IDLE: Duration = Duration::from_secs(60);
/// A host that nobody has wanted for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Time for a probe's answer: the longer the host has been silent, the more, for it may only be far away or busy.
const PROBE_TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Hosts remembered: a storage may have many.
const HOSTS: usize = 64;

/// The hosts that one client talks to.
pub(super) struct Hosts {
    http: Clients,
    traffic: Arc<Traffic>,
    /// Told when any host is back.
    back: Arc<Notify>,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

pub(super) struct Host {
    http: Clients,
    probe: Url,
    traffic: Arc<Traffic>,
    back: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Asked for patience until then, with these words.
    patience: Option<(Instant, String)>,
    silence: Option<Silence>,
    http2: Option<bool>,
}

/// No connection, or no answer.
struct Silence {
    since: SystemTime,
    cause: String,
    /// A read has waited for all of its time.
    exhausted: bool,
    probed_in_vain: bool,
    wanted: Instant,
}

impl Hosts {
    pub fn new(http: Clients, traffic: Arc<Traffic>, back: Arc<Notify>) -> Self {
        Self { http, traffic, back, hosts: Mutex::default() }
    }

    pub fn of(&self, url: &Url) -> Arc<Host> {
        let origin = url.origin().ascii_serialization();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS && !hosts.contains_key(&origin) {
            // Those that nothing is to be remembered of.
            hosts.retain(|_, host| host.state().is_notable());
        }
        let new = || {
            // The API's root, which every registry answers; from a storage any answer will do.
            let mut probe = url.clone();
            probe.set_path("/v2/");
            probe.set_query(None);
            let (http, traffic, back) = (self.http.clone(), Arc::clone(&self.traffic), Arc::clone(&self.back));
            Arc::new(Host { http, probe, traffic, back, state: Mutex::default() })
        };
        Arc::clone(hosts.entry(origin).or_insert_with(new))
    }

    /// One that does not answer, in words.
    pub fn silent(&self) -> Option<String> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.values().find_map(|host| {
            let state = host.state();
            let silence = state.silence.as_ref()?;
            Some(format!("{} does not answer: {}", shown(&host.probe), silence.cause))
        })
    }

    /// A read has waited for all of its time.
    pub fn exhausted(&self) {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        for host in hosts.values() {
            if let Some(silence) = &mut host.state().silence {
                silence.exhausted = true;
            }
        }
    }
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of the two clients it answered last.
    pub fn speaks_http2(&self) -> Option<bool> {
        self.state().http2
    }

    /// Why not to ask this host now, because it wants to be left alone for a while.
    pub fn admit(&self, object: &str) -> Result<(), Failure> {
        let mut state = self.state();
        let Some((until, words)) = &state.patience else { return Ok(()) };
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            state.patience = None;
            return Ok(());
        }
        let error = Error::new(ErrorKind::Unreachable, object, format!("the registry asked for patience: {words}"));
        Err(Failure::Passing { error: error.hint("try again later"), not_before: Some(wait) })
    }

    /// All who want this host wait so long. Bounded by the caller: who has said too much must not be left alone for
    /// ever.
    pub fn be_patient(&self, wait: Duration, words: String) {
        let until = Instant::now() + wait;
        let mut state = self.state();
        if state.patience.as_ref().is_none_or(|(known, _)| *known < until) {
            state.patience = Some((until, words));
        }
    }

    pub fn answered(&self, http2: bool) {
        let silence = {
            let mut state = self.state();
            state.http2 = Some(http2);
            state.silence.take()
        };
        if let Some(silence) = silence {
            if silence.exhausted && silence.probed_in_vain {
                tracing::info!("{}: answers again", shown(&self.probe));
            }
            self.back.notify_waiters();
        }
    }

    pub fn silent(self: &Arc<Self>, cause: &str) {
        let mut state = self.state();
        match &mut state.silence {
            Some(silence) => {
                silence.cause = cause.to_owned();
                silence.wanted = Instant::now();
            }
            None => {
                state.silence = Some(Silence {
                    since: SystemTime::now(),
                    cause: cause.to_owned(),
                    exhausted: false,
                    probed_in_vain: false,
                    wanted: Instant::now(),
                });
                tokio::spawn(probe(Arc::downgrade(self)));
            }
        }
    }

    pub fn is_silent(&self) -> bool {
        self.state().silence.is_some()
    }

    /// Why it is of no use to ask now.
    pub fn dead(&self, object: &str) -> Option<Error> {
        let mut state = self.state();
        let silence = state.silence.as_mut().filter(|silence| silence.exhausted && silence.probed_in_vain)?;
        silence.wanted = Instant::now();
        let since = humantime::format_rfc3339_seconds(silence.since);
        let cause =
            format!("no answer from {} since {since}: {}", self.probe.host_str().unwrap_or_default(), silence.cause);
        Some(
            Error::new(ErrorKind::Unreachable, object, cause)
                .hint("it is tried twice a second, and read again when it answers"),
        )
    }

    /// How long until the next probe; `None`: there is nothing to find out.
    fn next_probe(&self) -> Option<Duration> {
        let mut state = self.state();
        let unwanted = state.silence.as_ref()?.wanted.elapsed();
        if unwanted > FORGET {
            state.silence = None;
            return None;
        }
        Some(if unwanted > IDLE { IDLE_PROBE } else { PROBE })
    }

    async fn try_it(&self) {
        let since = self.state().silence.as_ref().and_then(|silence| silence.since.elapsed().ok());
        let patience = (since.unwrap_or_default() / 4).clamp(PROBE_TIMEOUT[0], PROBE_TIMEOUT[1]);
        // What a host speaks that has never answered is not known. One of HTTP/2 alone does not let HTTP/1.1 wait.
        let versions = self.speaks_http2().map_or(vec![false, true], |known| vec![known]);
        let answer = async {
            for http2 in versions {
                self.traffic.request();
                if self.http.speaking(http2).get(self.probe.clone()).send().await.is_ok() {
                    return Some(http2);
                }
            }
            None
        };
        if let Ok(Some(http2)) = tokio::time::timeout(patience, answer).await {
            return self.answered(http2);
        }
        if let Some(silence) = &mut self.state().silence {
            silence.probed_in_vain = true;
        }
    }
}

impl State {
    fn is_notable(&self) -> bool {
        self.silence.is_some() || self.patience.is_some()
    }
}

/// Goes on until the host answers or nobody knows it any more.
async fn probe(host: Weak<Host>) {
    while let Some(pause) = host.upgrade().and_then(|host| host.next_probe()) {
        tokio::time::sleep(pause).await;
        let Some(host) = host.upgrade().filter(|host| host.next_probe().is_some()) else { return };
        host.try_it().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::registry::RegistryOptions;
    use crate::registry::mirrors::place_of_registry;
    use crate::registry::targets::Targets;
    use crate::registry::transport::Transport;

    fn hosts() -> Hosts {
        let options = RegistryOptions::default();
        let transport = Transport::new(&place_of_registry("127.0.0.1:1", &options).unwrap(), &options).unwrap();
        let http = transport.clients(&Targets::new("127.0.0.1", true, false), false).unwrap();
        Hosts::new(http, Arc::default(), Arc::default())
    }

    #[tokio::test]
    async fn a_host_is_given_up_only_after_a_read_has_waited_and_a_probe_has_failed() {
        let hosts = hosts();
        let host = hosts.of(&"http://127.0.0.1:1/x?secret".parse().unwrap());
        host.silent("refused");
        assert!(host.dead("blob").is_none(), "others still try");
        hosts.exhausted();
        assert!(host.dead("blob").is_none(), "it may answer others");
        host.try_it().await;
        let error = host.dead("blob").expect("dead").to_string();
        assert!(error.contains("since 2") && error.contains("refused") && !error.contains("secret"), "{error}");
        host.answered(false);
        assert!(host.dead("blob").is_none());
    }

    /// Closes what is not HTTP/2 (RFC 9113, section 3.4), and answers the first request.
    async fn http2_alone(listener: TcpListener) {
        loop {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut preface = [0; 24];
            if peer.read_exact(&mut preface).await.is_err() || !preface.starts_with(b"PRI * HTTP/2.0") {
                continue;
            }
            // SETTINGS; then, when there are HEADERS, those of stream 1: `:status: 200`, and no more.
            peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut frame = [0; 9];
            while frame[3] != 1 {
                peer.read_exact(&mut frame).await.unwrap();
                let length = usize::from(frame[1]) << 8 | usize::from(frame[2]);
                peer.read_exact(&mut vec![0; length]).await.unwrap();
            }
            peer.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.unwrap();
            // Open until the other side has seen it.
            let _ = peer.read_to_end(&mut Vec::new()).await;
        }
    }

    #[tokio::test]
    async fn a_host_of_http2_alone_that_was_dead_from_the_start_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = hosts();
        let host = hosts.of(&format!("http://{address}/x").parse().unwrap());
        host.silent("refused");
        hosts.exhausted();
        let server = tokio::spawn(http2_alone(listener));
        host.try_it().await;
        assert!(!host.is_silent());
        assert_eq!(host.speaks_http2(), Some(true));
        server.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_want_a_host_that_asks_for_patience_wait() {
        let hosts = hosts();
        let host = hosts.of(&"http://h/a".parse().unwrap());
        host.be_patient(Duration::from_secs(7), "429".into());
        host.be_patient(Duration::from_secs(2), "429".into());
        let same = hosts.of(&"http://h/b".parse().unwrap());
        let Err(Failure::Passing { not_before: Some(wait), .. }) = same.admit("blob") else { panic!() };
        assert!(wait > Duration::from_secs(6), "{wait:?}");
        assert!(hosts.of(&"http://h:81/b".parse().unwrap()).admit("blob").is_ok());
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(same.admit("blob").is_ok());
    }
}
