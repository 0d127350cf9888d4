//! pcluster's own client: what the command line uses to talk to a controller.
//!
//! Parts: [`address`] (which address of a connection file to use from here), `link` (one connection; requests and the
//! replies that fit them), [`requests`] (what may be asked, typed), [`submit`] (a map and its inputs, which may still be
//! coming), [`watch`] (results in input order as they come), [`view`] (engines as one would use them),
//! [`async_result`] (a map that was submitted), [`error`].
//!
//! It knows no files but the connection file it is given, starts nothing and prints nothing.
pub mod address;
pub mod async_result;
pub mod error;
mod link;
pub mod requests;
pub mod submit;
#[cfg(test)]
mod tests;
pub mod view;
pub mod watch;

pub use async_result::AsyncResult;
pub use error::ClientError;
pub use link::Client;
pub use submit::Feeding;
pub use view::View;
pub use watch::{Update, Watch};

/// The shapes of what is asked and answered, for those who may not name the wire.
pub use crate::wire::content::client::{
    DetailsReply, JobsReply, JobsRequest, MapReply, MapsRequest, Selection, SelectionReply, StatusReply,
};
