//! When to try again: exponential pauses with jitter inside one deadline.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use reqwest::Url;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::targets::shown;
use super::traffic::Traffic;
use crate::error::{Error, ErrorKind, Result};

/// Those who were asked to wait come back within this time.
const SPREAD: Duration = Duration::from_millis(300);

/// Why one attempt failed.
#[derive(Debug)]
pub enum Failure {
    Final(Error),
    /// Not what was asked for: worth one more attempt, because a proxy on the way may have mixed up answers.
    Odd(Error),
    /// Worth another attempt, not sooner than the server asked for (`Retry-After`).
    Passing {
        error: Error,
        not_before: Option<Duration>,
    },
    /// The host is known to be dead: who has just come need not wait, who waits already goes on.
    Dead(Error),
}

impl Failure {
    pub fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Odd(error) | Self::Passing { error, .. } | Self::Dead(error) => error,
        }
    }
}

impl Failure {
    /// With the host that it happened at, unless what was asked for tells it.
    pub(super) fn at(mut self, url: &Url) -> Self {
        let (Self::Final(error) | Self::Odd(error) | Self::Passing { error, .. } | Self::Dead(error)) = &mut self;
        if !error.object.contains(url.host_str().unwrap_or_default()) {
            error.cause = format!("{}: {}", shown(url), error.cause);
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// The attempts at one thing.
pub struct Retry {
    timeout: Duration,
    deadline: Instant,
    pauses: ExponentialBackoff,
    last: Option<Error>,
    /// There was an odd answer already.
    odd: bool,
}

impl Retry {
    /// Goes on until `timeout` from now has passed.
    pub fn within(timeout: Duration) -> Self {
        Self::new(timeout, backoff().without_max_times())
    }

    /// Somebody waits at a terminal: three attempts in about a second, unless the server asks for patience.
    pub fn a_few_times_within(timeout: Duration) -> Self {
        Self::new(timeout, backoff().with_max_times(2))
    }

    fn new(timeout: Duration, pauses: ExponentialBuilder) -> Self {
        Self { timeout, deadline: Instant::now() + timeout, pauses: pauses.build(), last: None, odd: false }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Attempts until one succeeds or there is no other.
    pub async fn run<T, A: Future<Output = Result<T, Failure>>>(
        mut self,
        object: &str,
        back: &Notify,
        traffic: &Traffic,
        attempt: impl Fn() -> A,
    ) -> Result<T> {
        loop {
            let failure = match timeout_at(self.deadline, attempt()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(self.timed_out(object)),
            };
            self.pause(failure, back).await?;
            traffic.retry();
        }
    }

    /// Waits for the next attempt, or says why there is none. `back`: told when a host that was silent answers again.
    pub async fn pause(&mut self, failure: Failure, back: &Notify) -> Result<()> {
        let (error, not_before) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Dead(error) if self.last.is_none() => return Err(error),
            Failure::Dead(error) => (error, None),
            Failure::Odd(error) if std::mem::replace(&mut self.odd, true) => return Err(error),
            Failure::Odd(error) => (error, None),
            Failure::Passing { error, not_before } => (error, not_before),
        };
        let Some(pause) = self.pauses.next() else { return Err(error) };
        // Jitter also behind a common wait, so that not all come at once.
        let next = Instant::now() + not_before.map_or(pause, |wait| wait + pause.min(SPREAD));
        if next >= self.deadline {
            return Err(error);
        }
        tracing::debug!("{error}; trying again");
        self.last = Some(error);
        match not_before {
            Some(_) => tokio::time::sleep_until(next).await,
            None => drop(tokio::time::timeout_at(next, back.notified()).await),
        }
        Ok(())
    }

    pub fn timed_out(&self, object: &str) -> Error {
        let timeout = humantime::format_duration(self.timeout);
        let cause = match &self.last {
            Some(last) if last.object == object => format!("no answer within {timeout}; before that: {}", last.cause),
            Some(last) => format!("no answer within {timeout}; before that: {}: {}", last.object, last.cause),
            None => format!("no answer within {timeout}"),
        };
        Error::new(ErrorKind::TimedOut, object, cause).hint("check the network, or give more time with --timeout")
    }
}

fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(not_before: Option<Duration>) -> Failure {
        Failure::Passing { error: Error::new(ErrorKind::Unreachable, "r", "refused"), not_before }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_go_on_until_the_deadline_and_no_longer() {
        let start = Instant::now();
        let mut retry = Retry::within(Duration::from_secs(60));
        let mut attempts = 1;
        while retry.pause(passing(None), &Notify::new()).await.is_ok() {
            attempts += 1;
        }
        assert!((10..40).contains(&attempts), "{attempts}");
        assert!(start.elapsed() <= Duration::from_secs(60));
        assert!(retry.timed_out("r").to_string().contains("within 1m; before that: refused"));
        assert!(retry.timed_out("blob").to_string().contains("within 1m; before that: r: refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_failure_ends_at_once_and_a_server_may_ask_for_patience() {
        let mut retry = Retry::within(Duration::from_secs(60));
        assert!(
            retry.pause(Failure::Final(Error::new(ErrorKind::NotFound, "r", "404")), &Notify::new()).await.is_err()
        );
        let start = Instant::now();
        retry.pause(passing(Some(Duration::from_secs(7))), &Notify::new()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(7));
        assert!(retry.pause(passing(Some(Duration::from_secs(100))), &Notify::new()).await.is_err());
        assert!(start.elapsed() < Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn at_a_terminal_three_attempts_are_enough() {
        let mut retry = Retry::a_few_times_within(Duration::from_secs(60));
        assert!(retry.pause(passing(None), &Notify::new()).await.is_ok());
        assert!(retry.pause(passing(None), &Notify::new()).await.is_ok());
        assert!(retry.pause(passing(None), &Notify::new()).await.is_err());
    }
}
