//! A task that is with an engine: which run of it, what it asked for, how its earlier attempts failed.
use crate::model::change::UsedRetries;
use crate::model::output::{Output, Stream, Written};
use crate::model::task::Ask;
use crate::model::{EngineUuid, UnixTime};
use bytes::Bytes;

/// A task assigned to an engine.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(super) engine: EngineUuid,
    pub(super) run: u32,
    pub(super) input: Bytes,
    /// Increases with each task sent: an engine starts its tasks in this order.
    pub(super) sent: u64,
    /// The engine has reported its start, or may have died of it.
    pub(super) begun: bool,
    /// When, as the engine has reported.
    pub(super) began: Option<UnixTime>,
    /// Bytes of its output recorded with the next commit or before: stdout, stderr, value.
    pub(super) written: Written,
    pub(super) used: UsedRetries,
    pub(super) ask: Ask,
    /// It is being cancelled: however it ends, it is not retried.
    pub(super) cancelled: bool,
}

impl InFlight {
    pub(crate) fn engine(&self) -> &EngineUuid {
        &self.engine
    }
    pub(crate) fn run(&self) -> u32 {
        self.run
    }
    pub(crate) fn is_at(&self, run: u32, engine: &EngineUuid) -> bool {
        self.run == run && self.engine == *engine
    }
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }
    pub(crate) fn began(&self) -> Option<UnixTime> {
        self.began
    }
    pub(crate) fn note_start(&mut self, at: UnixTime) {
        self.began = Some(at);
    }
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled
    }
    pub(crate) fn written(&self) -> Written {
        self.written
    }
    /// What it asked for instead of what its map does.
    pub(crate) fn ask(&self) -> Ask {
        self.ask
    }
    pub(crate) fn used(&self) -> UsedRetries {
        self.used
    }
    /// Returns false if it had begun before.
    pub(crate) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }
    /// Its engine is at fault, whatever becomes of it.
    pub(crate) fn exonerate(&mut self) {
        self.begun = false;
    }
    /// However it ends, it is not retried.
    pub(crate) fn cancel(&mut self) {
        self.cancelled = true;
    }
    /// Adds output and returns the part that was not recorded before, if any.
    pub(crate) fn write(&mut self, stream: Stream, start: u64, bytes: &Bytes) -> Option<Bytes> {
        let written = &mut self.written[stream as usize];
        let part = Output::rest(start, bytes.clone());
        let rest = part.following(*written).filter(|bytes| !bytes.is_empty())?;
        *written = part.size;
        Some(rest)
    }
}
