//! Maps whose inputs end early: their client reports why, or it has died. A client without input to send sends keep-alive
//! messages; after some leases without a message, the map is closed: its unassigned tasks are aborted, and an additional task
//! represents the missing inputs. So the map ends as failed, waiting clients are notified, and maps that follow it do not run.
use super::Core;
use super::outbox::Timer;
use crate::model::change::Change;
use crate::model::task::{INPUTS_MISSING, TaskState};
use crate::model::{MapId, TaskId};
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use std::time::Duration;

/// A multiple of `controller.lease_ms`: a client may be stopped, or suspended with its laptop, for longer than an engine.
const LEASES: u32 = 5;
/// A client without input to send sends a keep-alive every ten seconds.
const SHORTEST: Duration = Duration::from_secs(30);

impl Core {
    fn inputs_lease(&self) -> Duration {
        (Self::period(self.config.lease_ms) * LEASES).max(SHORTEST)
    }

    /// Notes a message from the client of an open map.
    pub(super) fn note_input(&mut self, id: MapId) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.last_input = self.out.now().since_start;
        }
    }

    /// Starts the timeout for inputs.
    pub(super) fn expect_inputs(&mut self, id: MapId) {
        self.note_input(id);
        self.out.set_timer(self.inputs_lease(), Timer::Inputs(id));
    }

    pub(super) fn inputs_due(&mut self, id: MapId) {
        let Some(map) = self.maps.get(&id).filter(|map| !map.closed) else {
            return;
        };
        let until = map.last_input + self.inputs_lease();
        match until.checked_sub(self.out.now().since_start).filter(|left| !left.is_zero()) {
            Some(left) => self.out.set_timer(left, Timer::Inputs(id)),
            None => self.client_is_silent(id),
        }
    }

    fn client_is_silent(&mut self, id: MapId) {
        let seconds = self.inputs_lease().as_secs();
        let Some(map) = self.maps.get(&id) else { return };
        let came = map.counts.total;
        tracing::warn!(map = %id, inputs = came, seconds, "the client of an open map is silent; the map is closed and ends as failed");
        let why = format!("its client was silent for {seconds} s before it sent all inputs; {came} arrived, the rest is missing");
        self.abandon(id, "ClientLost", &why);
    }

    /// Closes a map without the rest of its inputs. `ename` is the error of its unassigned tasks.
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
        let submitted = self.out.now().unix;
        self.out.record(Change::TasksAdded {
            map: id,
            first: came,
            inputs: vec![Bytes::from_static(b"null")],
            state,
            submitted,
        });
        self.out.record(Change::MapClosed { map: id, total: came + 1 });
        self.finish(
            TaskId::new(id, came),
            1,
            None,
            crate::model::task::Outcome::failure(TaskState::Aborted, INPUTS_MISSING, why, submitted, submitted),
        );
        self.abort_unsent(id, ename, why);
        self.after_changes(id);
    }

    /// Rejects inputs for an abandoned map.
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
