//! Local ports that are forwarded to another host, over the current [`Route`].
//!
//! This process listens on the ports itself and keeps them, while the ssh connections below are replaced: no other process can take
//! one meanwhile, and a client that connects while there is no route waits a little for one. The data is not inspected.
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// The timeout of a new connection that waits for a route; ZeroMQ's handshake times out after 30 s.
const WAIT: Duration = Duration::from_secs(25);
/// The maximum number of bytes buffered for one direction of one connection.
const BUFFER: usize = 128 << 10;

/// The local socket that is forwarded to each remote channel ([`super::Ssh::forward_local`]).
pub(crate) type Route = BTreeMap<String, PathBuf>;

/// Listens until it is dropped.
pub(crate) struct Ports {
    local: BTreeMap<String, u16>,
    route: watch::Sender<Option<Arc<Route>>>,
    refused: Arc<Notify>,
    listening: Vec<JoinHandle<()>>,
}

impl Ports {
    /// One port of the loopback for each name: the one that is `wanted`, or, where that is taken or none is wanted, any.
    /// Also the names whose wanted port was taken.
    pub(crate) async fn bind(names: &[&str], wanted: &BTreeMap<String, u16>) -> io::Result<(Ports, Vec<String>)> {
        let (route, _) = watch::channel(None);
        let mut ports = Ports {
            local: BTreeMap::new(),
            route,
            refused: Arc::default(),
            listening: Vec::new(),
        };
        let mut moved = Vec::new();
        for name in names {
            let listener = match wanted.get(*name) {
                Some(port) => match TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).await {
                    Ok(listener) => listener,
                    Err(_) => {
                        moved.push(name.to_string());
                        any_port().await?
                    }
                },
                None => any_port().await?,
            };
            ports.local.insert(name.to_string(), listener.local_addr()?.port());
            let (route, refused) = (ports.route.subscribe(), ports.refused.clone());
            ports
                .listening
                .push(tokio::spawn(listen(listener, name.to_string(), route, refused)));
        }
        Ok((ports, moved))
    }

    /// Name and port.
    pub(crate) fn local(&self) -> &BTreeMap<String, u16> {
        &self.local
    }

    /// Sets the route of new connections. Existing connections keep theirs.
    pub(crate) fn set_route(&self, route: Route) {
        self.route.send_replace(Some(Arc::new(route)));
    }

    /// Makes new connections wait.
    pub(crate) fn clear_route(&self) {
        self.route.send_replace(None);
    }

    /// Returns when the other end closed a connection before it had sent anything: nothing is listening at the target.
    pub(crate) async fn refused(&self) {
        self.refused.notified().await;
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

async fn any_port() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

async fn listen(listener: TcpListener, name: String, route: watch::Receiver<Option<Arc<Route>>>, refused: Arc<Notify>) {
    // The connections end with the listener.
    let mut carried = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    carried.spawn(carry(stream, name.clone(), route.clone(), refused.clone()));
                }
                // For example, out of file descriptors: existing connections continue.
                Err(error) => {
                    tracing::warn!(%error, name, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut local: TcpStream, name: String, mut route: watch::Receiver<Option<Arc<Route>>>, refused: Arc<Notify>) {
    let remote = tokio::time::timeout(WAIT, async {
        loop {
            let path = match route.wait_for(Option::is_some).await {
                Ok(route) => route.as_ref().and_then(|route| route.get(&name).cloned()),
                Err(_) => return None,
            };
            match UnixStream::connect(path?).await {
                Ok(stream) => return Some(stream),
                // The route has just ended; another one will follow.
                Err(_) => route.changed().await.ok()?,
            }
        }
    });
    let Ok(Some(mut remote)) = remote.await else { return };
    // Else small messages would wait for the acknowledgement of the previous one.
    let _ = local.set_nodelay(true);
    let carried = tokio::io::copy_bidirectional_with_sizes(&mut local, &mut remote, BUFFER, BUFFER).await;
    match carried {
        Ok((_, 0)) => refused.notify_one(),
        Ok((sent, received)) => tracing::debug!(name, sent, received, "connection closed"),
        Err(error) => tracing::debug!(name, %error, "connection failed"),
    }
}

/// The response at the end of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// A server that sends first, as ZeroMQ does (ZMTP's greeting).
    Speaks,
    /// It was closed: nothing is listening, or the connection is forbidden.
    Closed,
    /// Nothing was received.
    Silent,
}

/// Probes an address; an error if it cannot connect.
pub(crate) async fn greeting_at(address: &str, port: u16, timeout: Duration) -> io::Result<Greeting> {
    let response = async {
        let mut stream = TcpStream::connect((address, port)).await?;
        let read = stream.read(&mut [0]).await;
        Ok(if matches!(read, Ok(1)) {
            Greeting::Speaks
        } else {
            Greeting::Closed
        })
    };
    match tokio::time::timeout(timeout, response).await {
        Ok(found) => found,
        Err(_) => Ok(Greeting::Silent),
    }
}

/// Probes the target of a forwarded socket.
pub(crate) async fn greeting(socket: &Path, timeout: Duration) -> Greeting {
    let response = async {
        let mut byte = [0];
        match UnixStream::connect(socket).await {
            Ok(mut stream) => matches!(stream.read(&mut byte).await, Ok(1)),
            Err(_) => false,
        }
    };
    match tokio::time::timeout(timeout, response).await {
        Ok(true) => Greeting::Speaks,
        Ok(false) => Greeting::Closed,
        Err(_) => Greeting::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    /// Echoes each line.
    fn echo(path: &Path) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        })
    }

    async fn echoed(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        back
    }

    #[tokio::test]
    async fn connections_wait_for_a_route_and_ports_survive_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ports, moved) = Ports::bind(&["mux", "task"], &BTreeMap::new()).await.unwrap();
        assert!(moved.is_empty());
        let port = ports.local()["mux"];
        // Before there is a route.
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let first = echo(&dir.path().join("first"));
        ports.set_route(Route::from([("mux".to_string(), dir.path().join("first"))]));
        assert_eq!(echoed(&mut stream, b"hello").await, b"hello");
        // The route ends: new connections wait for the next.
        first.abort();
        std::fs::remove_file(dir.path().join("first")).unwrap();
        let mut late = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let second = echo(&dir.path().join("second"));
        ports.set_route(Route::from([("mux".to_string(), dir.path().join("second"))]));
        assert_eq!(echoed(&mut late, b"again").await, b"again");
        second.abort();
    }

    #[tokio::test]
    async fn a_port_in_use_is_replaced() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let wanted = BTreeMap::from([("mux".to_string(), port)]);
        let (ports, moved) = Ports::bind(&["mux"], &wanted).await.unwrap();
        assert_eq!(moved, ["mux"]);
        assert_ne!(ports.local()["mux"], port);
        let wanted = ports.local().clone();
        drop(ports);
        // The listening task ends with the next turn of the runtime.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let (ports, moved) = Ports::bind(&["mux"], &wanted).await.unwrap();
        assert!(moved.is_empty());
        assert_eq!(ports.local(), &wanted);
    }

    #[tokio::test]
    async fn a_connection_closed_without_data_counts_as_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("closes");
        let listener = UnixListener::bind(&path).unwrap();
        let closer = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert_eq!(greeting(&path, Duration::from_secs(20)).await, Greeting::Closed);
        let (ports, _) = Ports::bind(&["mux"], &BTreeMap::new()).await.unwrap();
        ports.set_route(Route::from([("mux".to_string(), path)]));
        let mut stream = TcpStream::connect(("127.0.0.1", ports.local()["mux"])).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        // As ZeroMQ does then.
        drop(stream);
        ports.refused().await;
        closer.abort();
    }
}
