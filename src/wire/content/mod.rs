//! The content of messages: one file per conversation. All are plain serde structs; unknown fields
//! are ignored, and fields that older peers may omit have defaults.
pub mod client;
pub mod engine;
pub mod error;
pub mod hub;
