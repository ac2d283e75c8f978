//! The one bridge from FUSE callbacks to async code.
//!
//! A callback runs on a session thread, of which there are two, so it must never wait. It hands over a future that
//! owns its reply. What is in memory is ready at the first poll and answered at once, without a task or a wake-up;
//! anything else goes on in the runtime.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

pub struct Bridge {
    runtime: Handle,
}

impl Bridge {
    pub fn new(runtime: Handle) -> Self {
        Self { runtime }
    }

    /// Answers a request.
    ///
    /// A panic inside drops the reply, which fuser answers with EIO; left alone it would end the session thread. The
    /// panic hook has logged it by then.
    pub fn answer(&self, future: impl Future<Output = ()> + Send + 'static) {
        // Timers and spawns inside the future look for the runtime of the thread.
        let _context = self.runtime.enter();
        let mut future = Box::pin(future);
        // Nobody is woken by this waker. That loses nothing: a spawned task is polled once in any case, and a future
        // must register the waker of its latest poll.
        let mut once = Context::from_waker(Waker::noop());
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut once))) {
            Ok(Poll::Pending) => {
                // A task's panic is caught by tokio.
                self.runtime.spawn(future);
            }
            Ok(Poll::Ready(())) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Stands for a fuser reply: says how it went, or `dropped` when nobody answered.
    struct Reply {
        to: mpsc::Sender<(&'static str, thread::ThreadId)>,
        answered: bool,
    }

    impl Reply {
        fn ok(mut self) {
            self.answered = true;
            let _ = self.to.send(("ok", thread::current().id()));
        }
    }

    impl Drop for Reply {
        fn drop(&mut self) {
            if !self.answered {
                let _ = self.to.send(("dropped", thread::current().id()));
            }
        }
    }

    fn run(make: impl FnOnce(&Bridge, Reply)) -> (&'static str, bool) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (to, from) = mpsc::channel();
        let bridge = Bridge::new(runtime.handle().clone());
        make(&bridge, Reply { to, answered: false });
        let (how, thread) = from.recv_timeout(Duration::from_secs(10)).expect("an answer");
        (how, thread == thread::current().id())
    }

    #[test]
    fn what_is_ready_is_answered_on_the_calling_thread() {
        let (how, here) = run(|bridge, reply| bridge.answer(async move { reply.ok() }));
        assert_eq!((how, here), ("ok", true));
    }

    #[test]
    fn what_waits_is_answered_by_the_runtime() {
        let (how, here) = run(|bridge, reply| {
            bridge.answer(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                reply.ok();
            });
        });
        assert_eq!((how, here), ("ok", false));
    }

    #[test]
    fn a_wake_between_the_two_polls_is_not_lost() {
        let (how, here) = run(|bridge, reply| {
            let (send, receive) = tokio::sync::oneshot::channel();
            let mut send = Some(send);
            let mut receive = Box::pin(receive);
            let mut reply = Some(reply);
            bridge.answer(std::future::poll_fn(move |cx| {
                let polled = receive.as_mut().poll(cx).map(|_| ());
                if let Some(send) = send.take() {
                    // Wakes the waker of this first poll, which wakes nobody.
                    let _ = send.send(());
                } else if polled.is_ready()
                    && let Some(reply) = reply.take()
                {
                    reply.ok();
                }
                polled
            }));
        });
        assert_eq!((how, here), ("ok", false));
    }

    #[test]
    fn a_panic_drops_the_reply_and_leaves_the_thread_alive() {
        let (how, here) = run(|bridge, reply| {
            bridge.answer(async move {
                let _reply = reply;
                panic!("at once");
            });
        });
        assert_eq!((how, here), ("dropped", true));
    }

    #[test]
    fn a_late_panic_drops_the_reply_too() {
        let (how, here) = run(|bridge, reply| {
            bridge.answer(async move {
                let _reply = reply;
                tokio::task::yield_now().await;
                panic!("later");
            });
        });
        assert_eq!((how, here), ("dropped", false));
    }
}
