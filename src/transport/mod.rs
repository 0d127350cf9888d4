//! Sockets that carry multipart messages. [`zmq`] is the only file that names the ZeroMQ crate.
//!
//! A [`Socket`] is cheap to clone; sending never waits for a slow peer (what such a peer does not take is kept for it,
//! up to a bound; beyond it the peer is cut off, so that it connects and asks again).
mod overflow;
mod packed;
mod receipt;
mod refused;
mod waiting;
mod zmq;

pub use receipt::{Receipt, with_receipt};
pub use waiting::Waiting;
pub use zmq::{Connection, Connections, Socket};

/// What a socket is to ZeroMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first frame names the peer, in both directions.
    Router,
    Dealer,
    Pub,
    /// Subscribed to everything.
    Sub,
}

/// A CURVE key pair in Z85 text, as connection files spell keys.
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
    /// CURVE to a server with this public key; our own pair is made for the connection.
    Client { server_key: String },
}

/// What a socket takes from a peer.
#[derive(Clone)]
pub struct Limits {
    /// Of one message, with some bytes for each frame.
    pub message_bytes: Option<usize>,
    pub frames: usize,
    /// What may wait for peers that do not read, over all sockets that share this. By default each socket has its own bound.
    pub waiting: Option<Waiting>,
}

impl Limits {
    pub const NONE: Limits = Limits {
        message_bytes: None,
        frames: usize::MAX,
        waiting: None,
    };
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: {why}")]
    Bind {
        address: String,
        why: String,
        /// What the system said, if it did.
        kind: Option<std::io::ErrorKind>,
    },
    #[error("cannot connect to {address}: {why}")]
    Connect { address: String, why: String },
    #[error("the key in the connection file is not a CURVE key (40 characters of Z85): {0}")]
    BadKey(String),
    #[error("no such peer is connected")]
    NoPeer,
    #[error("the peer was cut off: {0}")]
    CutOff(String),
    #[error("the socket is closed")]
    Closed,
    #[error("{0}")]
    Other(String),
}

impl TransportError {
    /// Whether it may work later: another program has the port, the network is not up.
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
