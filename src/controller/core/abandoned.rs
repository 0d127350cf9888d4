//! Maps that do not get all their inputs: their client says so and why, or it has died. A client that has no input to send says that it is there ([`KEEP_ALIVE`]); when nothing
//! has come for some leases, the map is closed: tasks that no engine has are aborted, and one task more stands for the inputs
//! that are missing. So the map ends as failed, whoever waits for it hears that, and what was to follow it does not run.
use super::{Core, Due};
use crate::model::change::Change;
use crate::model::task::{INPUTS_MISSING, TaskState};
use crate::model::{MapId, TaskId};
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use std::time::Duration;

/// Of `controller.lease_ms`: a client may be stopped, or suspended with its laptop, for longer than an engine.
const LEASES: u32 = 5;
/// A client that has nothing to send says so every ten seconds.
const SHORTEST: Duration = Duration::from_secs(30);

impl Core {
    fn inputs_lease(&self) -> Duration {
        (Self::period(self.config.lease_ms) * LEASES).max(SHORTEST)
    }

    /// Something has come from the client of an open map.
    pub(super) fn note_fed(&mut self, id: MapId) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.fed = self.now.since_start;
        }
    }

    /// From now on inputs are expected.
    pub(super) fn expect_inputs(&mut self, id: MapId) {
        self.note_fed(id);
        self.remind(self.inputs_lease(), Due::Inputs(id));
    }

    pub(super) fn inputs_due(&mut self, id: MapId) {
        let Some(map) = self.maps.get(&id).filter(|map| !map.closed) else {
            return;
        };
        let until = map.fed + self.inputs_lease();
        match until.checked_sub(self.now.since_start).filter(|left| !left.is_zero()) {
            Some(left) => self.remind(left, Due::Inputs(id)),
            None => self.client_is_silent(id),
        }
    }

    fn client_is_silent(&mut self, id: MapId) {
        let seconds = self.inputs_lease().as_secs();
        let Some(map) = self.maps.get(&id) else { return };
        let came = map.counts.total;
        tracing::warn!(map = %id, inputs = came, seconds, "the client that sent the inputs of a map is silent; the map is closed, and ends as failed");
        let why = format!("its client was silent for {seconds} s while it sent inputs; {came} had come, those behind are missing");
        self.abandon(id, "ClientLost", &why);
    }

    /// `ename` is of the inputs that came and do not run.
    pub(super) fn abandon(&mut self, id: MapId, ename: &str, why: &str) {
        let Some(map) = self.maps.get_mut(&id).filter(|map| !map.closed) else {
            return;
        };
        let came = map.counts.total as u32;
        map.closed = true;
        map.abandoned = true;
        map.push(Bytes::from_static(b"null"), 1);
        map.dropped.insert(came);
        let state = match map.waiting_for {
            Some(_) => TaskState::Waiting,
            None => TaskState::Ready,
        };
        let submitted = self.now.unix;
        self.record(Change::TasksAdded {
            map: id,
            first: came,
            inputs: vec![Bytes::from_static(b"null")],
            state,
            submitted,
        });
        self.record(Change::MapClosed { map: id, total: came + 1 });
        self.finish(
            TaskId::new(id, came),
            1,
            None,
            crate::model::task::Outcome::failure(TaskState::Aborted, INPUTS_MISSING, why, submitted, submitted),
        );
        self.abort_unsent(id, ename, why);
        self.after_changes(id);
    }

    /// Why an abandoned map takes no more inputs.
    pub(super) fn check_abandoned(&self, id: MapId) -> Result<(), ErrorContent> {
        match self.maps.get(&id).is_some_and(|map| map.abandoned) {
            true => Err(ErrorContent::new(
                "MapClosed",
                format!("map {id} was closed without the rest of its inputs (pcluster results {id} --failed)"),
            )),
            false => Ok(()),
        }
    }
}
