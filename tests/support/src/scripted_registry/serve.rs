//! The server's side: accepts, records, answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response};
use hyper_util::rt::TokioIo;
use rustix::net;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::body::{Cut, ScriptedBody};
use super::fault::{self, Fault};
use super::gate;
use super::request::{Record, Request};
use super::state::Shared;
use super::uploads;

/// Each is answered when it is done.
pub(super) enum Command {
    GoDown(mpsc::Sender<()>),
    ComeUp(mpsc::Sender<()>),
}

enum Door {
    Open(TcpListener),
    /// Bound, so that nobody else takes the port, but not listening: a connection is refused.
    Closed(TcpSocket),
}

pub(super) async fn serve(listener: std::net::TcpListener, shared: Shared, mut commands: UnboundedReceiver<Command>) {
    let address = listener.local_addr().expect("a bound socket has an address");
    let listener = TcpListener::from_std(listener).expect("a listening socket can be watched");
    let mut door = Door::Open(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::GoDown(done)) => {
                    connections.shutdown().await;
                    if matches!(door, Door::Open(_)) {
                        // Bound before the other is closed: there is always somebody who takes a port that is free.
                        door = Door::Closed(bound(address));
                    }
                    let _ = done.send(());
                }
                Some(Command::ComeUp(done)) => {
                    if let Door::Closed(socket) = door {
                        door = Door::Open(socket.listen(1024).expect("a bound socket can listen"));
                    }
                    let _ = done.send(());
                }
            },
            accepted = accept(&door) => {
                shared.lock().connections += 1;
                connections.spawn(converse(accepted, shared.clone(), address));
                shared.lock().open = connections.len();
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => shared.lock().open = connections.len(),
        }
    }
}

/// On a free port, which a socket of this user that asks for this very port can share.
pub(super) fn listener() -> std::net::TcpListener {
    let why = "a port on the loopback interface";
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).expect(why);
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).expect(why);
    net::sockopt::set_socket_reuseport(&socket, true).expect(why);
    net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect(why);
    net::listen(&socket, 1024).expect(why);
    socket.into()
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket can be made");
    socket.set_reuseport(true).expect("a socket can be told to share its port");
    socket
        .bind(address)
        .unwrap_or_else(|error| panic!("the registry's own port {address} cannot be taken again: {error}"));
    socket
}

async fn accept(door: &Door) -> TcpStream {
    match door {
        Door::Closed(_) => std::future::pending().await,
        Door::Open(listener) => loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                // Too many open files, or a client that has gone: others may still come.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        },
    }
}

async fn converse(stream: TcpStream, shared: Shared, address: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, shared.clone(), address));
    // Clients that hang up and connections that the script cuts end here; both are part of the play.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    http: HttpRequest<Incoming>,
    shared: Shared,
    address: SocketAddr,
) -> Result<Response<ScriptedBody>, Cut> {
    let (http, body) = http.into_parts();
    let mut body = Some(body);
    let text = match body.take_if(|_| http.uri.path() == "/token") {
        Some(body) => gate::text_of(body).await,
        None => String::new(),
    };
    let (record, faults) = {
        let mut state = shared.lock();
        let request = Request {
            kind: state.kind(http.uri.path()),
            method: http.method.to_string(),
            path: http.uri.path().to_owned(),
            query: http.uri.query().map(str::to_owned),
            headers: http
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                .collect(),
            range: http.headers.get("range").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            body: text,
            received: 0,
            status: 0,
            sent: 0,
        };
        let faults = fault::choose(&mut state.faults, &request);
        let record = Record::new(request);
        state.requests.push(record.clone());
        (record, faults)
    };
    for fault in &faults {
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(*delay).await,
            Fault::Stall => std::future::pending().await,
            Fault::HangUp => return Err(Cut),
            _ => {}
        }
    }
    let origin = format!("http://{address}");
    let mut manifest = Vec::new();
    let is_welcome = {
        let state = shared.lock();
        state.uploads.is_some() && state.refusal(&record.request, &origin).is_none()
    };
    if let Some(body) = body.filter(|_| is_welcome && matches!(record.request.method.as_str(), "PATCH" | "PUT")) {
        let limit = faults.iter().find_map(|fault| match fault {
            Fault::CutUploadAfter(bytes) | Fault::StallUploadAfter(bytes) => Some(*bytes),
            _ => None,
        });
        let (rest, is_whole) = uploads::receive(body, limit, &record, &shared).await;
        if !is_whole {
            if faults.iter().any(|fault| matches!(fault, Fault::StallUploadAfter(_))) {
                std::future::pending().await
            }
            return Err(Cut);
        }
        manifest = rest;
    }
    let mut answer = shared.lock().answer(&record.request, manifest, &origin);
    for fault in &faults {
        fault.apply(&mut answer, &record.request);
    }
    Ok(answer.into_response(record))
}
