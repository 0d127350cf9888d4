//! Signed multipart messages: bytes in, bytes out. No sockets, clocks or randomness here.
//!
//! Layout (Jupyter messaging protocol 5.x, as ipyparallel uses it): `identities… <IDS|MSG>
//! signature header parent_header metadata content buffers…`
//!
//! Modules: [`signature`], [`message`] (parses and builds messages), [`session`] (key, replay
//! check, open and seal), [`content`] (the content of messages, one file per conversation).
pub mod content;
pub(crate) mod message;
pub(crate) mod session;
pub(crate) mod signature;

pub use message::{Header, Message};
pub use session::Session;

use bytes::Bytes;

/// The delimiter between the routing identities and the signature.
pub(crate) const DELIMITER: &[u8] = b"<IDS|MSG>";
/// The unit that a socket carries: one multipart message.
pub type Frames = Vec<Bytes>;
