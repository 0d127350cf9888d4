//! Sockets over `omq-tokio` (docs/adr/0001-zeromq-crate.md).
use super::{KeyPair, Kind, Security, TransportError};
use crate::wire::Frames;
use bytes::Bytes;
use omq_tokio::{
    CurveKeypair, CurvePublicKey, CurveSecretKey, Error, Message, MonitorEvent, MonitorRecvError, MonitorStream, Options, ReconnectPolicy,
    Socket as Omq, SocketType, TrySendError,
};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Messages that wait for one slow peer, at most.
const OVERFLOW_MESSAGES: usize = 100_000;
/// ... and how many bytes.
const OVERFLOW_BYTES: usize = 1 << 30;

#[derive(Clone)]
pub struct Socket {
    omq: Omq,
    kind: Kind,
    overflow: Arc<Mutex<Overflow>>,
}

/// A connection of a bound socket has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGone {
    /// The peer's routing id, where it had chosen one.
    pub identity: Bytes,
}

#[derive(Default)]
struct Overflow {
    by_peer: HashMap<Bytes, (VecDeque<Message>, usize)>,
    flushing: bool,
}

impl Socket {
    /// `identity` is the routing id that a ROUTER on the other side sees.
    pub fn new(kind: Kind, identity: Option<&str>, security: &Security) -> Result<Socket, TransportError> {
        let mut options = Options::new()
            .reconnect(ReconnectPolicy::Exponential {
                min: Duration::from_millis(50),
                max: Duration::from_secs(2),
            })
            .handshake_timeout(Duration::from_secs(10))
            .linger(Duration::from_secs(3))
            .monitor_capacity(4096)
            .router_mandatory(true);
        if let Some(identity) = identity {
            options = options.identity(Bytes::copy_from_slice(identity.as_bytes()));
        }
        options = match security {
            Security::Plain => options,
            Security::Server(pair) => options.curve_server(keypair(pair)?),
            Security::Client { server_key } => {
                let server = CurvePublicKey::from_z85(server_key).map_err(|e| TransportError::BadKey(e.to_string()))?;
                options.curve_client(CurveKeypair::generate(), server)
            }
        };
        let socket_type = match kind {
            Kind::Router => SocketType::Router,
            Kind::Dealer => SocketType::Dealer,
            Kind::Pub => SocketType::Pub,
            Kind::Sub => SocketType::Sub,
        };
        let omq = Omq::try_new(socket_type, options).map_err(|e| TransportError::Other(e.to_string()))?;
        Ok(Socket {
            omq,
            kind,
            overflow: Arc::default(),
        })
    }

    /// Listens on `ip:port`; port 0 takes a free one. Returns the port.
    pub async fn bind(&self, ip: &str, port: u16) -> Result<u16, TransportError> {
        let address = format!("tcp://{}:{port}", bracketed(ip));
        let endpoint = self.omq.bind(address.as_str()).await.map_err(|e| TransportError::Bind {
            address: address.clone(),
            why: plain_words(&e),
        })?;
        self.subscribe().await?;
        let text = endpoint.to_string();
        text.rsplit(':').next().and_then(|p| p.parse().ok()).ok_or(TransportError::Bind {
            address,
            why: format!("no port in {text}"),
        })
    }

    /// Connects in the background, again and again until it works.
    pub async fn connect(&self, ip: &str, port: u16) -> Result<(), TransportError> {
        let address = format!("tcp://{}:{port}", bracketed(ip));
        self.omq.connect(address.as_str()).await.map_err(|e| TransportError::Connect {
            address,
            why: plain_words(&e),
        })?;
        self.subscribe().await
    }

    async fn subscribe(&self) -> Result<(), TransportError> {
        if self.kind == Kind::Sub {
            self.omq
                .subscribe(Bytes::new())
                .await
                .map_err(|e| TransportError::Other(e.to_string()))?;
        }
        Ok(())
    }

    /// Sends without waiting. To a ROUTER's peer that is not there: [`TransportError::NoPeer`].
    pub fn send(&self, frames: Frames) -> Result<(), TransportError> {
        let peer = match self.kind {
            Kind::Router => frames.first().cloned().unwrap_or_default(),
            _ => Bytes::new(),
        };
        let message = Message::multipart(frames);
        if let Ok(mut overflow) = self.overflow.lock()
            && let Some(queue) = overflow.by_peer.get_mut(&peer)
        {
            push_bounded(queue, message, &peer);
            return Ok(());
        }
        match self.omq.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => {
                self.keep_for_later(peer, message);
                Ok(())
            }
            Err(TrySendError::Error(Error::Unroutable)) => Err(TransportError::NoPeer),
            Err(TrySendError::Closed | TrySendError::Error(Error::Closed)) => Err(TransportError::Closed),
            Err(TrySendError::Error(e)) => Err(TransportError::Other(e.to_string())),
        }
    }

    fn keep_for_later(&self, peer: Bytes, message: Message) {
        let Ok(mut overflow) = self.overflow.lock() else { return };
        push_bounded(overflow.by_peer.entry(peer.clone()).or_default(), message, &peer);
        if !overflow.flushing {
            overflow.flushing = true;
            let socket = self.clone();
            tokio::spawn(async move { socket.flush().await });
        }
    }

    /// Offers what is kept until all is taken or its peer is gone.
    async fn flush(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let Ok(mut overflow) = self.overflow.lock() else { return };
            overflow.by_peer.retain(|_, (queue, bytes)| {
                while let Some(message) = queue.pop_front() {
                    let size = message.byte_len();
                    match self.omq.try_send(message) {
                        Ok(()) => *bytes -= size.min(*bytes),
                        Err(TrySendError::Full(message)) => {
                            queue.push_front(message);
                            return true;
                        }
                        Err(_) => return false,
                    }
                }
                false
            });
            if overflow.by_peer.is_empty() {
                overflow.flushing = false;
                return;
            }
        }
    }

    pub async fn receive(&self) -> Result<Frames, TransportError> {
        let message = self.omq.recv().await.map_err(closed)?;
        Ok(frames(&message))
    }

    /// What has arrived already, if anything.
    pub fn try_receive(&self) -> Option<Frames> {
        self.omq.try_recv().ok().map(|message| frames(&message))
    }

    /// Connections of a bound socket, as they begin and end.
    pub fn connections(&self) -> Connections {
        Connections(self.omq.monitor())
    }

    /// The ends of connections, as they come.
    pub fn departures(&self) -> Departures {
        Departures(self.omq.monitor())
    }

    /// Waits for what was sent, a few seconds at most, and closes.
    pub async fn close(self) {
        let _ = self.omq.close().await;
    }
}

pub struct Departures(MonitorStream);

impl Departures {
    /// None when the socket is closed.
    pub async fn next(&mut self) -> Option<PeerGone> {
        loop {
            match self.0.recv().await {
                Ok(MonitorEvent::Disconnected { peer, .. }) => {
                    return Some(PeerGone {
                        identity: peer.peer_identity.unwrap_or_default(),
                    });
                }
                Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return None,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// What becomes of a peer's connection. `identity` is the routing id that its messages come under, chosen by it or given here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// `key`: the peer's CURVE public key (Z85), proven in the handshake; it is the same when the peer comes back.
    Began {
        identity: Bytes,
        key: Option<String>,
    },
    Ended {
        identity: Bytes,
    },
}

pub struct Connections(MonitorStream);

impl Connections {
    /// None when the socket is closed.
    pub async fn next(&mut self) -> Option<Connection> {
        let identity = |peer: &omq_tokio::PeerInfo| {
            let own = peer.peer_identity.clone().filter(|i| !i.is_empty());
            own.unwrap_or_else(|| omq_tokio::message::generated_identity(peer.connection_id))
        };
        loop {
            match self.0.recv().await {
                Ok(MonitorEvent::HandshakeSucceeded { peer, .. }) => {
                    let key = match &peer.authentication.public_key {
                        Some(omq_tokio::PeerPublicKey::Curve(key)) => Some(CurvePublicKey::from_bytes(*key).to_z85()),
                        _ => None,
                    };
                    return Some(Connection::Began {
                        identity: identity(&peer),
                        key,
                    });
                }
                Ok(MonitorEvent::Disconnected { peer, .. }) => return Some(Connection::Ended { identity: identity(&peer) }),
                Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return None,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl KeyPair {
    pub fn generate() -> KeyPair {
        let pair = CurveKeypair::generate();
        KeyPair {
            public: pair.public.to_z85(),
            secret: pair.secret.to_z85(),
        }
    }
}

fn keypair(pair: &KeyPair) -> Result<CurveKeypair, TransportError> {
    let bad = |e: Error| TransportError::BadKey(e.to_string());
    Ok(CurveKeypair {
        public: CurvePublicKey::from_z85(&pair.public).map_err(bad)?,
        secret: CurveSecretKey::from_z85(&pair.secret).map_err(bad)?,
    })
}

fn frames(message: &Message) -> Frames {
    (0..message.len()).filter_map(|i| message.part_bytes(i)).collect()
}

fn push_bounded((queue, bytes): &mut (VecDeque<Message>, usize), message: Message, peer: &Bytes) {
    let size = message.byte_len();
    if queue.len() >= OVERFLOW_MESSAGES || *bytes + size > OVERFLOW_BYTES {
        tracing::warn!(peer = %peer.escape_ascii(), waiting = queue.len(), bytes = *bytes, "a peer does not read: message dropped");
        return;
    }
    *bytes += size;
    queue.push_back(message);
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') && !ip.starts_with('[') {
        format!("[{ip}]")
    } else {
        ip.to_string()
    }
}

fn closed(e: Error) -> TransportError {
    match e {
        Error::Closed => TransportError::Closed,
        e => TransportError::Other(e.to_string()),
    }
}

fn plain_words(e: &Error) -> String {
    e.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(security: bool) -> (Socket, Socket) {
        let keys = KeyPair::generate();
        let (server, client) = match security {
            true => (Security::Server(keys.clone()), Security::Client { server_key: keys.public }),
            false => (Security::Plain, Security::Plain),
        };
        let router = Socket::new(Kind::Router, None, &server).unwrap();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        let dealer = Socket::new(Kind::Dealer, Some("me"), &client).unwrap();
        dealer.connect("127.0.0.1", port).await.unwrap();
        (router, dealer)
    }

    #[tokio::test]
    async fn messages_go_both_ways_with_and_without_curve() {
        for security in [false, true] {
            let (router, dealer) = pair(security).await;
            dealer.send(vec![Bytes::from_static(b"a"), Bytes::new()]).unwrap();
            assert_eq!(router.receive().await.unwrap(), ["me", "a", ""]);
            router.send(vec![Bytes::from_static(b"me"), Bytes::from_static(b"b")]).unwrap();
            assert_eq!(dealer.receive().await.unwrap(), ["b"]);
            assert!(matches!(
                router.send(vec![Bytes::from_static(b"nobody"), Bytes::new()]),
                Err(TransportError::NoPeer)
            ));
        }
    }

    #[tokio::test]
    async fn a_peer_that_leaves_is_told_of() {
        let (router, dealer) = pair(true).await;
        let mut departures = router.departures();
        dealer.send(vec![Bytes::from_static(b"a")]).unwrap();
        router.receive().await.unwrap();
        dealer.close().await;
        assert_eq!(departures.next().await.unwrap().identity, "me");
    }

    #[tokio::test]
    async fn a_peer_is_known_again_by_its_key() {
        let keys = KeyPair::generate();
        let router = Socket::new(Kind::Router, None, &Security::Server(keys.clone())).unwrap();
        let mut connections = router.connections();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        let client = Security::Client { server_key: keys.public };
        let dealer = Socket::new(Kind::Dealer, None, &client).unwrap();
        dealer.connect("127.0.0.1", port).await.unwrap();
        dealer.send(vec![Bytes::from_static(b"a")]).unwrap();
        let sender = router.receive().await.unwrap().remove(0);
        let Some(Connection::Began { identity, key: Some(key) }) = connections.next().await else {
            panic!("no connection began");
        };
        assert_eq!((identity.clone(), key.len()), (sender, 40));
        dealer.close().await;
        assert_eq!(connections.next().await, Some(Connection::Ended { identity }));
    }

    #[tokio::test]
    async fn a_burst_to_one_peer_is_kept_in_order() {
        let (router, dealer) = pair(false).await;
        dealer.send(vec![Bytes::from_static(b"hello")]).unwrap();
        router.receive().await.unwrap();
        for i in 0..20_000u32 {
            router.send(vec![Bytes::from_static(b"me"), Bytes::from(i.to_string())]).unwrap();
        }
        for i in 0..20_000u32 {
            assert_eq!(dealer.receive().await.unwrap(), [i.to_string()]);
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_refused() {
        let (router, _dealer) = pair(false).await;
        let port = router.omq.last_bound_endpoint().unwrap().to_string();
        let port = port.rsplit(':').next().unwrap().parse().unwrap();
        let other = Socket::new(Kind::Router, None, &Security::Plain).unwrap();
        let error = other.bind("127.0.0.1", port).await.unwrap_err().to_string();
        assert!(error.contains("cannot listen on"), "{error}");
    }
}
