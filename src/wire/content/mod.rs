//! What messages say: one file per conversation. All are plain serde structs; unknown fields are ignored,
//! missing ones have defaults where an older peer may leave them out.
pub mod client;
pub mod engine;
pub mod error;
pub mod hub;
