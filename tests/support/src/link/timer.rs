//! Sleeping to the tenth of a millisecond: tokio's own timers round up to whole ones.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Inside a runtime.
    pub fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).expect("a timer: too many open files?");
        // SAFETY: the AsyncFd owns the timer's descriptor, which nobody closes or replaces before it.
        let watched = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Self(watched.expect("a timer can be watched"))
    }

    pub async fn until(&mut self, at: Instant) {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let once = Itimerspec {
                it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() },
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once).expect("a timer can be set");
            let mut ready = self.0.readable().await.expect("a timer can be watched");
            let _ = rustix::io::read(self.0.get_ref(), &mut [0; 8]);
            ready.clear_ready();
        }
    }
}
