//! A thread with a runtime of its own, so that servers run beside tests that know nothing of async.

use std::future::Future;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// Ends its future, and everything that was spawned from it, when dropped; no thread is left behind.
pub(crate) struct ServerThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// `server` makes the future on the new thread, inside its runtime.
    pub fn start<F: Future<Output = ()>>(name: &str, server: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
                runtime.block_on(async {
                    tokio::select! {
                        () = async { server().await } => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("a thread can be started");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a test server panicked, see above");
        }
    }
}
