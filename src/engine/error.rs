//! Why an engine ended.

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The connection file cannot be used.
    #[error("{0}")]
    BadConnectionFile(String),
    /// No address answered; the text lists them.
    #[error("{0}")]
    Unreachable(String),
    /// The controller rejected the engine.
    #[error("the controller rejected this engine: {0}")]
    Refused(String),
    /// No message from the controller within its timeout.
    #[error("no message from the controller for {0} s")]
    ControllerGone(u64),
    #[error("{0}")]
    System(String),
}
