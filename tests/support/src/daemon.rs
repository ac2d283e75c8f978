//! A server in a process of its own, which ends with its owner, and with the test program however that ends.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Returns at the first line on its stderr that `ready` makes something of. An error is what it said before it
    /// ended.
    pub fn start<T: Send + 'static>(
        program: &Path,
        arguments: &[&OsStr],
        ready: fn(&str) -> Option<T>,
    ) -> Result<(Self, T), String> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // REGISTRY_… variables would change a registry's configuration.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        // Distribution 3 sends traces to a collector unless told not to.
        command.env("OTEL_TRACES_EXPORTER", "none");

        let log = Arc::new(Mutex::new(String::new()));
        let (child_there, child) = mpsc::channel();
        let (ready_there, is_ready) = mpsc::channel();
        let for_reader = Arc::clone(&log);
        // Lives as long as the server, because the server dies with the thread that started it: prctl(2),
        // `PR_SET_PDEATHSIG`. That is how it ends with the test program, even if nobody drops it.
        let live = move || {
            let Ok(mut child) = command.spawn() else { return };
            let stderr = child.stderr.take().expect("it is piped");
            if child_there.send(child).is_err() {
                return;
            }
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let found = ready(&line);
                let mut log = for_reader.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
                drop(log);
                if let Some(found) = found {
                    let _ = ready_there.send(found);
                }
            }
        };
        let reader =
            std::thread::Builder::new().name("server".to_owned()).spawn(live).expect("a thread can be started");
        let Ok(child) = child.recv_timeout(PATIENCE) else {
            panic!("{} cannot be started through setpriv (apt-get install util-linux)", program.display())
        };
        let daemon = Self { child, log, reader: Some(reader) };
        match is_ready.recv_timeout(PATIENCE) {
            Ok(found) => Ok((daemon, found)),
            Err(_) => Err(daemon.log()),
        }
    }

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
