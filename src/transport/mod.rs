//! Sockets that carry multipart messages. [`zmq`] is the only file that names the ZeroMQ crate.
//!
//! A [`Socket`] is cheap to clone. Sending never blocks on a slow peer: messages that the peer does
//! not accept are queued up to a limit. Beyond the limit the peer is disconnected, so that it
//! reconnects and asks again.
mod handshakes;
mod memory_budget;
mod packed;
mod receipt;
mod send_queues;
mod zmq;

pub(crate) use memory_budget::MemoryBudget;
pub(crate) use receipt::{Receipt, with_receipt};
pub use zmq::Socket;
pub(crate) use zmq::{Connection, Connections};

/// The ZeroMQ type of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// The first frame names the peer, in both directions.
    Router,
    Dealer,
    Pub,
    /// Subscribed to everything.
    Sub,
}

/// A CURVE key pair as Z85 text, the format of connection files.
#[derive(Clone)]
pub struct KeyPair {
    pub public: String,
    pub secret: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyPair({}, …)", self.public)
    }
}

#[derive(Clone, Debug)]
pub enum Security {
    /// No encryption.
    Plain,
    /// CURVE; peers must know our public key.
    Server(KeyPair),
    /// CURVE to a server with this public key; a key pair is generated for the connection.
    Client { server_key: String },
}

/// Limits on what a socket accepts from a peer.
#[derive(Clone)]
pub struct Limits {
    /// Maximum size of one message, including some bytes per frame.
    pub message_bytes: Option<usize>,
    pub frames: usize,
    /// Maximum size of the messages queued for slow peers, over all sockets that share this budget.
    /// By default each socket has its own limit.
    pub budget: Option<MemoryBudget>,
}

impl Limits {
    pub const NONE: Limits = Limits {
        message_bytes: None,
        frames: usize::MAX,
        budget: None,
    };
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: {why}")]
    Bind {
        address: String,
        why: String,
        /// The system's error, if there is one.
        kind: Option<std::io::ErrorKind>,
    },
    #[error("cannot connect to {address}: {why}")]
    Connect { address: String, why: String },
    #[error("the key in the connection file is not a CURVE key (40 characters of Z85): {0}")]
    BadKey(String),
    #[error("no such peer is connected")]
    NoPeer,
    #[error("the peer was disconnected: {0}")]
    Disconnected(String),
    #[error("the socket is closed")]
    Closed,
    #[error("{0}")]
    Other(String),
}

impl TransportError {
    /// Whether a retry may succeed: the port is in use, or the network is down.
    pub fn is_transient(&self) -> bool {
        use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, NetworkDown};
        matches!(
            self,
            TransportError::Bind {
                kind: Some(AddrInUse | AddrNotAvailable | NetworkDown),
                ..
            }
        )
    }
}
