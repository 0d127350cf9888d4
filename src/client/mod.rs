//! pcluster's own client: what the command line uses to talk to a controller.
//!
//! Parts: [`address`] (which address of a connection file to use), `link` (one connection; matches replies to requests),
//! [`requests`] (typed requests), [`submit`] (a map and its stream of inputs), [`watch`] (results in input order as they arrive),
//! [`view`] (balanced and direct use of engines), [`async_result`] (a submitted map), [`error`].
//!
//! It reads no files except the given connection file, starts nothing and prints nothing.
pub(crate) mod address;
pub(crate) mod async_result;
pub(crate) mod error;
mod link;
pub(crate) mod requests;
pub(crate) mod submit;
#[cfg(test)]
mod tests;
pub(crate) mod view;
pub(crate) mod watch;

pub(crate) use async_result::AsyncResult;
pub(crate) use error::ClientError;
pub use link::Client;
pub(crate) use submit::Feeding;
pub(crate) use watch::Update;

/// Request and reply types, for modules that may not use `wire`.
pub(crate) use crate::wire::content::client::{
    ExplainReply, ExplainRequest, JobsRequest, MapReply, MapsRequest, Selection, SelectionReply, StatusReply, WaitingWork,
};
