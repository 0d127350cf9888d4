//! Signed multipart messages: bytes in, bytes out. No sockets, clocks or randomness here.
//!
//! Layout (Jupyter messaging protocol 5.x, as ipyparallel uses it):
//! `identities… <IDS|MSG> signature header parent_header metadata content buffers…`
//!
//! Parts: [`signature`], [`message`] (a parsed message, and making one), [`session`] (key, replay check, open and seal),
//! [`content`] (what the messages say, one file per conversation).
pub mod content;
pub mod message;
pub mod session;
pub mod signature;

pub use message::{Header, Message};
pub use session::Session;

use bytes::Bytes;

/// Stands between the routing identities and the signature.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";
/// What travels over a socket: one multipart message.
pub type Frames = Vec<Bytes>;
