//! Sockets based on `omq-tokio` (docs/adr/0001-zeromq-crate.md).
use super::handshakes::Handshakes;
use super::memory_budget::{MAX_SOCKET_BYTES, MIN_ACCOUNTED_BYTES, MemoryBudget, PeerUsage, with_reservation};
use super::packed::{is_packed, pack, unpack};
use super::send_queues::{QueueLimitExceeded, SendOutcome, SendQueues};
use super::{KeyPair, Limits, Security, SocketKind, TransportError};
use crate::wire::Frames;
use bytes::Bytes;
use omq_tokio::{
    CurveKeypair, CurvePublicKey, CurveSecretKey, DisconnectReason, Error, Message, MonitorEvent, MonitorRecvError, MonitorStream, Options,
    ReconnectPolicy, Socket as Omq, SocketType, TrySendError,
};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Timeout for a connection to authenticate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size in bytes of a socket's unsent messages if it has a budget of its own.
const MAX_UNSENT_BYTES: usize = 1 << 30;
/// Maximum number of unauthenticated connections per socket; further ones are closed immediately.
/// Authenticated ones do not count.
const MAX_PENDING_HANDSHAKES: usize = 512;

/// Whether small messages are sent as one frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PackMode {
    Never,
    /// Only to peers that do the same.
    Adaptive,
    Always,
}

#[derive(Clone)]
pub struct Socket {
    omq: Omq,
    kind: SocketKind,
    queues: Arc<Mutex<SendQueues<Message>>>,
    /// The connections of a ROUTER's peers, by routing id.
    peers: Arc<Mutex<HashMap<Bytes, u64>>>,
    max_frames: usize,
    pack_mode: PackMode,
    /// Peers that have sent a packed message on their current connection.
    packed_peers: Arc<Mutex<HashSet<Bytes>>>,
    budget: MemoryBudget,
    /// The number of this socket among those that share [`Limits::budget`].
    number: usize,
}

impl Socket {
    /// `identity` is the routing id that a remote ROUTER sees. The length of received messages is
    /// unlimited: for a socket that connects to a peer whose key it knows.
    pub fn new(kind: SocketKind, identity: Option<&str>, security: &Security) -> Result<Socket, TransportError> {
        Socket::with_limits(kind, identity, security, &Limits::NONE)
    }

    /// A peer that sends a message beyond `limits` is disconnected before memory is allocated for
    /// it.
    pub fn with_limits(kind: SocketKind, identity: Option<&str>, security: &Security, limits: &Limits) -> Result<Socket, TransportError> {
        let mut options = Options::new()
            .reconnect(ReconnectPolicy::Exponential {
                min: Duration::from_millis(50),
                max: Duration::from_secs(2),
            })
            .handshake_timeout(HANDSHAKE_TIMEOUT)
            .max_pending_handshakes(MAX_PENDING_HANDSHAKES)
            .linger(Duration::from_secs(3))
            // Each slot takes 340 bytes from the start, used or not, and a controller has twelve
            // sockets.
            .monitor_capacity(1024)
            .router_mandatory(true);
        if let Some(bytes) = limits.message_bytes {
            options = options.max_message_size(bytes);
        }
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
            SocketKind::Router => SocketType::Router,
            SocketKind::Dealer => SocketType::Dealer,
            SocketKind::Pub => SocketType::Pub,
            SocketKind::Sub => SocketType::Sub,
        };
        let omq = Omq::try_new(socket_type, options).map_err(|e| TransportError::Other(e.to_string()))?;
        let (sender, mut to_disconnect) = tokio::sync::mpsc::unbounded_channel();
        let budget = limits.budget.clone().unwrap_or_else(|| MemoryBudget::new(MAX_UNSENT_BYTES));
        let socket = Socket {
            omq,
            kind,
            queues: Arc::default(),
            peers: Arc::default(),
            max_frames: limits.frames,
            pack_mode: PackMode::Never,
            packed_peers: Arc::default(),
            number: budget.join(sender),
            budget,
        };
        // Lives as long as the sockets that share the budget; a socket with its own budget is
        // limited when it sends.
        if limits.budget.is_some() {
            let (omq, peers, queues) = (socket.omq.clone(), socket.peers.clone(), socket.queues.clone());
            tokio::spawn(async move {
                while let Some((peer, why)) = to_disconnect.recv().await {
                    disconnect(&omq, &peers, &queues, &peer, &why);
                }
            });
        }
        if kind == SocketKind::Router {
            socket.track_peers(matches!(security, Security::Server(_)));
        }
        Ok(socket)
    }

    /// Sends small messages as one frame; the other end must use this mode or the adaptive one.
    #[must_use]
    pub fn with_packing(mut self) -> Socket {
        self.pack_mode = PackMode::Always;
        self
    }

    /// Sends small messages as one frame to peers that do so themselves. Call it before binding or
    /// connecting the socket.
    #[must_use]
    pub fn with_adaptive_packing(mut self) -> Socket {
        self.pack_mode = PackMode::Adaptive;
        self
    }

    /// Maintains the table of peers, and logs those whose handshake fails.
    fn track_peers(&self, encrypts: bool) {
        let (mut monitor, peers, queues) = (self.omq.monitor(), self.peers.clone(), self.queues.clone());
        let (budget, number, packed_peers) = (self.budget.downgrade(), self.number, self.packed_peers.clone());
        tokio::spawn(async move {
            let mut errors = 0;
            let mut handshakes = Handshakes::new(encrypts);
            loop {
                let due = handshakes.due();
                let wait = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let event = tokio::select! {
                    biased;
                    event = monitor.recv() => event,
                    () = wait => {
                        handshakes.check_closed(std::time::Instant::now());
                        continue;
                    }
                };
                match event {
                    Ok(MonitorEvent::Accepted {
                        peer_ident, connection_id, ..
                    }) => handshakes.began(connection_id, peer_ident.to_string()),
                    Ok(MonitorEvent::HandshakeSucceeded { peer, .. }) => {
                        handshakes.succeeded(peer.connection_id);
                        if let Some(identity) = peer.peer_identity.filter(|identity| !identity.is_empty()) {
                            lock(&peers).insert(identity, peer.connection_id);
                        }
                    }
                    Ok(MonitorEvent::Disconnected { peer, reason, .. }) => {
                        let identity = peer
                            .peer_identity
                            .filter(|identity| !identity.is_empty())
                            .unwrap_or_else(|| omq_tokio::message::generated_identity(peer.connection_id));
                        let mut peers = lock(&peers);
                        if let DisconnectReason::Error(why) = &reason {
                            errors += 1u64;
                            // For example a message beyond the limit. Not logged for
                            // unauthenticated peers, who could fill the log.
                            if peers.contains_key(&identity) || errors.is_power_of_two() {
                                tracing::info!(errors, why, "a peer's connection ended with an error");
                            }
                        }
                        // A peer that has reconnected under the same name already has another
                        // connection.
                        let current = peers.get(&identity).is_none_or(|id| *id == peer.connection_id);
                        if current {
                            peers.remove(&identity);
                            lock(&packed_peers).remove(&identity);
                            lock(&queues).forget(&identity);
                            if let Some(budget) = budget.upgrade() {
                                budget.forget(number, &identity);
                            }
                        }
                    }
                    Ok(MonitorEvent::HandshakeFailed { peer_ident, reason, .. }) => handshakes.failed(&peer_ident.to_string(), &reason),
                    Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return,
                    Err(MonitorRecvError::Lagged(_)) => handshakes.clear(),
                    Ok(_) | Err(_) => {}
                }
            }
        });
    }

    /// Listens on `ip:port`; port 0 selects a free one. Returns the port.
    pub async fn bind(&self, ip: &str, port: u16) -> Result<u16, TransportError> {
        let address = format!("tcp://{}:{port}", bracketed(ip));
        let endpoint = self.omq.bind(address.as_str()).await.map_err(|e| TransportError::Bind {
            address: address.clone(),
            why: describe(&e),
            kind: match &e {
                Error::Io(error) => Some(error.kind()),
                _ => None,
            },
        })?;
        self.subscribe().await?;
        let text = endpoint.to_string();
        text.rsplit(':').next().and_then(|p| p.parse().ok()).ok_or(TransportError::Bind {
            address,
            why: format!("no port in {text}"),
            kind: None,
        })
    }

    /// Connects in the background, with retries.
    pub async fn connect(&self, ip: &str, port: u16) -> Result<(), TransportError> {
        let address = format!("tcp://{}:{port}", bracketed(ip));
        self.omq.connect(address.as_str()).await.map_err(|e| TransportError::Connect {
            address,
            why: describe(&e),
        })?;
        self.subscribe().await
    }

    async fn subscribe(&self) -> Result<(), TransportError> {
        if self.kind == SocketKind::Sub {
            self.omq
                .subscribe(Bytes::new())
                .await
                .map_err(|e| TransportError::Other(e.to_string()))?;
        }
        Ok(())
    }

    /// Sends without blocking. For a ROUTER's peer that is not connected:
    /// [`TransportError::NoPeer`].
    pub fn send(&self, frames: Frames) -> Result<(), TransportError> {
        let (peer, first) = match self.kind {
            SocketKind::Router => (frames.first().cloned().unwrap_or_default(), 1),
            _ => (Bytes::new(), 0),
        };
        let packs = match self.pack_mode {
            PackMode::Never => false,
            PackMode::Adaptive => lock(&self.packed_peers).contains(&peer),
            PackMode::Always => true,
        };
        let mut frames = if packs { pack(frames, first) } else { frames };
        let size: usize = frames.iter().map(Bytes::len).sum();
        let mut load: Option<Arc<PeerUsage>> = None;
        if size >= MIN_ACCOUNTED_BYTES && self.kind == SocketKind::Router {
            let usage = self.budget.usage(self.number, &peer);
            if let Some(last) = frames.last_mut() {
                *last = with_reservation(std::mem::take(last), usage.reserve(size));
            }
            load = Some(usage);
        }
        let message = Message::multipart(frames);
        // The message itself is included in these bytes.
        let is_window_full = load
            .as_ref()
            .is_some_and(|load| load.bytes() - size.min(load.bytes()) >= MAX_SOCKET_BYTES);
        if is_window_full || lock(&self.queues).has_queued(&peer) {
            return self.enqueue(&peer, load, message, size);
        }
        match self.omq.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => self.enqueue(&peer, load, message, size),
            Err(TrySendError::Error(Error::Unroutable)) => Err(TransportError::NoPeer),
            Err(TrySendError::Closed | TrySendError::Error(Error::Closed)) => Err(TransportError::Closed),
            Err(TrySendError::Error(e)) => Err(TransportError::Other(e.to_string())),
        }
    }

    /// `load`: the reservation of a message that is already accounted for.
    fn enqueue(&self, peer: &Bytes, load: Option<Arc<PeerUsage>>, message: Message, size: usize) -> Result<(), TransportError> {
        let (load, reservation) = match load {
            Some(load) => (load, None),
            None => {
                let load = self.budget.usage(self.number, peer);
                let reservation = load.reserve(size);
                (load, Some(reservation))
            }
        };
        let queued = lock(&self.queues).push(peer, &load, message, size, self.budget.max_bytes(), reservation);
        self.after_enqueue(peer, queued)
    }

    fn after_enqueue(&self, peer: &Bytes, queued: Result<(), QueueLimitExceeded>) -> Result<(), TransportError> {
        if let Err(exceeded) = queued {
            let why = exceeded.to_string();
            self.budget.count_disconnect();
            self.disconnect(peer, &why);
            return Err(TransportError::Disconnected(why));
        }
        let mut queues = lock(&self.queues);
        if !queues.flushing {
            queues.flushing = true;
            let socket = self.clone();
            tokio::spawn(async move { socket.flush().await });
        }
        Ok(())
    }

    /// Flushes the queue until it is empty or the peer has disconnected.
    async fn flush(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let mut queues = lock(&self.queues);
            queues.offer(|message| match self.omq.try_send(message) {
                Ok(()) => SendOutcome::Sent,
                Err(TrySendError::Full(message)) => SendOutcome::Full(message),
                Err(_) => SendOutcome::Disconnected,
            });
            if queues.is_empty() {
                queues.flushing = false;
                return;
            }
        }
    }

    /// Disconnects a ROUTER's peer and drops its queued messages. The peer may reconnect, and has
    /// to ask again for what it missed.
    pub fn disconnect(&self, peer: &Bytes, why: &str) {
        disconnect(&self.omq, &self.peers, &self.queues, peer, why);
    }

    /// Whether messages are queued that could not be sent immediately.
    pub fn is_behind(&self) -> bool {
        !lock(&self.queues).is_empty()
    }

    pub async fn receive(&self) -> Result<Frames, TransportError> {
        loop {
            let message = self.omq.recv().await.map_err(closed)?;
            if let Some(frames) = self.accepted(&message) {
                return Ok(frames);
            }
        }
    }

    /// Returns a message that has already arrived, if any.
    pub fn try_receive(&self) -> Option<Frames> {
        loop {
            let message = self.omq.try_recv().ok()?;
            if let Some(frames) = self.accepted(&message) {
                return Some(frames);
            }
        }
    }

    fn accepted(&self, message: &Message) -> Option<Frames> {
        let count = message.len();
        let taken = match count <= self.max_frames {
            true if self.pack_mode == PackMode::Always => unpack(frames(message), self.max_frames),
            true if self.pack_mode == PackMode::Adaptive => self.unpack_adaptive(frames(message)),
            true => Some(frames(message)),
            false => None,
        };
        if taken.is_none() {
            let peer = message.part_bytes(0).unwrap_or_default();
            let why = format!(
                "a malformed message, or one of at least {count} frames (at most {} are allowed)",
                self.max_frames
            );
            self.disconnect(&peer, &why);
        }
        taken
    }

    /// A message of one frame is unpacked if it has the mark.
    fn unpack_adaptive(&self, frames: Frames) -> Option<Frames> {
        let first = usize::from(self.kind == SocketKind::Router);
        if frames.len() != first + 1 || !is_packed(&frames[first]) {
            return Some(frames);
        }
        let peer = if first == 1 { frames[0].clone() } else { Bytes::new() };
        lock(&self.packed_peers).insert(peer);
        unpack(frames, self.max_frames)
    }

    /// The beginning and end of a socket's connections.
    pub fn connections(&self) -> Connections {
        Connections(self.omq.monitor())
    }

    /// Waits up to a few seconds for unsent messages, then closes the socket.
    pub async fn close(self) {
        let _ = self.omq.close().await;
    }
}

/// Events of a peer's connection. `identity` is the routing id of its messages, chosen by the peer
/// or assigned here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// `key`: the peer's CURVE public key (Z85), authenticated in the handshake; it stays the same
    /// when the peer reconnects.
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
    /// The routing id of the next peer whose connection ends.
    pub async fn next_disconnected(&mut self) -> Option<Bytes> {
        loop {
            if let Connection::Ended { identity } = self.next().await? {
                return Some(identity);
            }
        }
    }

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

/// The connection number in a routing id that this side assigned (a zero byte and the number, big
/// endian).
fn generated(identity: &Bytes) -> Option<u64> {
    let number: [u8; 8] = identity.strip_prefix(&[0])?.try_into().ok()?;
    Some(u64::from_be_bytes(number))
}

fn disconnect(omq: &Omq, peers: &Mutex<HashMap<Bytes, u64>>, queues: &Mutex<SendQueues<Message>>, peer: &Bytes, why: &str) {
    lock(queues).forget(peer);
    let Some(connection) = lock(peers).get(peer).copied().or_else(|| generated(peer)) else {
        tracing::warn!(peer = %peer.escape_ascii(), why, "cannot disconnect a peer: it has no connection");
        return;
    };
    tracing::warn!(peer = %peer.escape_ascii(), why, "disconnecting a peer");
    let omq = omq.clone();
    tokio::spawn(async move { omq.disconnect_peer(connection).await });
}

/// After a panic in another thread these tables remain usable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn describe(e: &Error) -> String {
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
        let router = Socket::new(SocketKind::Router, None, &server).unwrap();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        let dealer = Socket::new(SocketKind::Dealer, Some("me"), &client).unwrap();
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
                router.send(vec![Bytes::from_static(b"unknown"), Bytes::new()]),
                Err(TransportError::NoPeer)
            ));
        }
    }

    #[tokio::test]
    async fn small_messages_are_packed_for_peers_that_pack_theirs() {
        let router = Socket::new(SocketKind::Router, None, &Security::Plain)
            .unwrap()
            .with_adaptive_packing();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        let (plain, other) = (
            dealer(port, Some("plain")).await,
            dealer(port, Some("other")).await.with_adaptive_packing(),
        );
        let parts = || vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from_static(b"\0pk1")];
        let to = |name: &'static str| [vec![Bytes::from_static(name.as_bytes())], parts()].concat();
        for (socket, name) in [(&plain, "plain"), (&other, "other")] {
            socket.send(parts()).unwrap();
            assert_eq!(router.receive().await.unwrap(), to(name));
            router.send(to(name)).unwrap();
            assert_eq!(socket.receive().await.unwrap(), parts());
        }
        // A manually packed message is answered in the same form; this socket does not unpack it.
        plain.send(pack(parts(), 0)).unwrap();
        assert_eq!(router.receive().await.unwrap(), to("plain"));
        router.send(to("plain")).unwrap();
        assert_eq!(plain.receive().await.unwrap(), pack(parts(), 0));
        other.clone().with_packing().send(parts()).unwrap();
        assert_eq!(router.receive().await.unwrap(), to("other"));
        router.send(to("other")).unwrap();
        assert_eq!(other.receive().await.unwrap(), parts());
        // A peer that reconnects is a new one.
        assert!(lock(&router.packed_peers).contains(&b"other"[..]));
        other.close().await;
        while lock(&router.packed_peers).contains(&b"other"[..]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_disconnect_is_reported() {
        let (router, dealer) = pair(true).await;
        let mut departures = router.connections();
        dealer.send(vec![Bytes::from_static(b"a")]).unwrap();
        router.receive().await.unwrap();
        dealer.close().await;
        assert_eq!(departures.next_disconnected().await.unwrap(), "me");
    }

    #[tokio::test]
    async fn a_peer_is_identified_by_its_key_after_a_reconnection() {
        let keys = KeyPair::generate();
        let router = Socket::new(SocketKind::Router, None, &Security::Server(keys.clone())).unwrap();
        let mut connections = router.connections();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        let client = Security::Client { server_key: keys.public };
        let dealer = Socket::new(SocketKind::Dealer, None, &client).unwrap();
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
    async fn a_burst_to_one_peer_stays_in_order() {
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

    async fn limited(limits: Limits) -> (Socket, u16) {
        let router = Socket::with_limits(SocketKind::Router, None, &Security::Plain, &limits).unwrap();
        let port = router.bind("127.0.0.1", 0).await.unwrap();
        (router, port)
    }

    async fn dealer(port: u16, name: Option<&str>) -> Socket {
        let dealer = Socket::new(SocketKind::Dealer, name, &Security::Plain).unwrap();
        dealer.connect("127.0.0.1", port).await.unwrap();
        dealer
    }

    /// Sends until the router receives it: a connection that is closing loses messages.
    async fn send_until_received(peer: &Socket, router: &Socket, text: &'static str) -> Bytes {
        loop {
            peer.send(vec![Bytes::from_static(text.as_bytes())]).unwrap();
            let timeout = Duration::from_millis(300);
            while let Ok(frames) = tokio::time::timeout(timeout, router.receive()).await {
                let frames = frames.unwrap();
                if frames[1] == text {
                    return frames[0].clone();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_only_its_own_connection() {
        let limits = Limits {
            message_bytes: Some(10_000),
            frames: 20,
            budget: None,
        };
        for name in [Some("bad"), None] {
            for bad in [vec![Bytes::from(vec![0; 20_000])], vec![Bytes::new(); 21]] {
                let (router, port) = limited(limits.clone()).await;
                let (peer, good) = (dealer(port, name).await, dealer(port, Some("good")).await);
                send_until_received(&peer, &router, "short").await;
                let mut departures = router.connections();
                peer.send(bad).unwrap();
                good.send(vec![Bytes::from_static(b"still here")]).unwrap();
                assert_eq!(router.receive().await.unwrap(), ["good", "still here"]);
                let gone = departures.next_disconnected().await.unwrap();
                assert!(name.map_or(gone.starts_with(b"\0"), |name| gone == name), "{gone:?}");
                // It may reconnect.
                send_until_received(&peer, &router, "better").await;
            }
        }
    }

    #[tokio::test]
    async fn a_declared_length_allocates_no_memory() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (router, port) = limited(Limits {
            message_bytes: Some(1 << 20),
            frames: 20,
            budget: None,
        })
        .await;
        let mut liar = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut greeting = [0u8; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        liar.write_all(&greeting).await.unwrap();
        // READY with its socket type, then a frame of 2^62 bytes, of which a part is sent.
        let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
        ready.extend(6u32.to_be_bytes());
        ready.extend(b"DEALER");
        liar.write_all(&[4, u8::try_from(ready.len()).unwrap()]).await.unwrap();
        liar.write_all(&ready).await.unwrap();
        liar.write_all(&[2]).await.unwrap();
        liar.write_all(&(1u64 << 62).to_be_bytes()).await.unwrap();
        let _ = liar.write_all(&[7; 1000]).await;
        let mut answer = Vec::new();
        // End-of-file or a reset: in both cases the router did not wait for the rest.
        let _ = liar.read_to_end(&mut answer).await;
        let good = dealer(port, Some("good")).await;
        good.send(vec![Bytes::from_static(b"x")]).unwrap();
        assert_eq!(router.receive().await.unwrap(), ["good", "x"]);
    }

    #[tokio::test]
    async fn a_disconnected_peer_may_reconnect() {
        let (router, port) = limited(Limits::NONE).await;
        let mut departures = router.connections();
        let peer = dealer(port, Some("bad")).await;
        let identity = send_until_received(&peer, &router, "a").await;
        router.disconnect(&identity, "a test");
        assert_eq!(departures.next_disconnected().await.unwrap(), "bad");
        send_until_received(&peer, &router, "b").await;
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_disconnected_and_the_others_are_served() {
        let (router, port) = limited(Limits::NONE).await;
        let mut departures = router.connections();
        let (slow, good) = (dealer(port, Some("slow")).await, dealer(port, Some("good")).await);
        for peer in [&slow, &good] {
            peer.send(vec![Bytes::from_static(b"hello")]).unwrap();
            router.receive().await.unwrap();
        }
        // One block of memory, sent repeatedly.
        let block = Bytes::from(vec![0; 64 << 20]);
        let mut sent = 0usize;
        let error = loop {
            match router.send(vec![Bytes::from_static(b"slow"), block.clone()]) {
                Ok(()) => sent += block.len(),
                Err(error) => break error,
            }
            assert!(sent < 2 * MAX_UNSENT_BYTES, "never disconnected");
        };
        assert!(
            matches!(&error, TransportError::Disconnected(why) if why.contains("does not read")),
            "{error}"
        );
        assert_eq!(departures.next_disconnected().await.unwrap(), "slow");
        router.send(vec![Bytes::from_static(b"good"), Bytes::from_static(b"x")]).unwrap();
        assert_eq!(good.receive().await.unwrap(), ["x"]);
    }

    /// Several peers of two sockets that do not read are limited together; a peer that reads is
    /// served throughout.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_slow_peers_share_one_limit_and_the_slowest_is_disconnected_first() {
        const MAX_BYTES: usize = 300 << 20;
        let budget = MemoryBudget::new(MAX_BYTES);
        let limits = Limits {
            budget: Some(budget.clone()),
            ..Limits::NONE
        };
        let ((first, port), (second, other_port)) = (limited(limits.clone()).await, limited(limits).await);
        let mut departures = first.connections();
        let names = ["slowest", "slow", "good"];
        // With its default of 1000 messages, it could receive all that is sent before any piles up.
        let options = Options::new().identity(Bytes::from_static(b"slowest")).recv_hwm(1);
        let slowest = Omq::try_new(SocketType::Dealer, options).unwrap();
        slowest.connect(format!("tcp://127.0.0.1:{port}").as_str()).await.unwrap();
        slowest.send(Message::from("hello")).await.unwrap();
        first.receive().await.unwrap();
        let [slow, good] = [dealer(other_port, Some("slow")).await, dealer(port, Some("good")).await];
        for (peer, socket) in [(&slow, &second), (&good, &first)] {
            peer.send(vec![Bytes::from_static(b"hello")]).unwrap();
            socket.receive().await.unwrap();
        }
        let block = Bytes::from(vec![0; 8 << 20]);
        let send = |socket: &Socket, peer: &'static str| socket.send(vec![Bytes::from_static(peer.as_bytes()), block.clone()]);
        let mut rounds = 0;
        while budget.disconnected_peers() == 0 {
            send(&first, names[0]).unwrap();
            send(&first, names[0]).unwrap();
            send(&second, names[1]).unwrap();
            send(&first, names[2]).unwrap();
            assert_eq!(good.receive().await.unwrap()[0].len(), block.len());
            rounds += 1;
            // Including the messages in their own sockets.
            assert!(rounds * 3 * block.len() < 3 * MAX_BYTES, "no peer was disconnected");
        }
        assert_eq!(departures.next_disconnected().await.unwrap(), "slowest");
        // The other peer continues, and receives everything in the end.
        for _ in 0..rounds {
            assert_eq!(slow.receive().await.unwrap()[0].len(), block.len());
        }
        assert_eq!(budget.disconnected_peers(), 1);
        drop(slowest);
    }

    #[tokio::test]
    async fn a_port_in_use_is_rejected() {
        let (router, _dealer) = pair(false).await;
        let port = router.omq.last_bound_endpoint().unwrap().to_string();
        let port = port.rsplit(':').next().unwrap().parse().unwrap();
        let other = Socket::new(SocketKind::Router, None, &Security::Plain).unwrap();
        let error = other.bind("127.0.0.1", port).await.unwrap_err().to_string();
        assert!(error.contains("cannot listen on"), "{error}");
    }
}
