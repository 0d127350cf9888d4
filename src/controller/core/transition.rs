//! All state transitions of a task; `docs/reference/task-states.md` shows the same table.
use crate::model::task::TaskState::{self, *};

/// From, to, and the cause.
pub(super) const TRANSITIONS: &[(TaskState, TaskState, &str)] = &[
    (Waiting, Ready, "its dependency succeeded"),
    (Waiting, Aborted, "cancelled, or its dependency failed"),
    (Waiting, Timeout, "its dependencies were not met in time"),
    (Ready, Assigned, "sent to an engine"),
    (Ready, Aborted, "cancelled, or no engine can ever run it"),
    (Ready, Timeout, "no engine was available in time"),
    (Ready, Lost, "its target engine left"),
    (Assigned, Running, "the engine started it"),
    (Assigned, Ready, "returned, or its engine left"),
    (Running, Ready, "retried"),
    (Assigned, Ok, "the engine reported success; short tasks skip `running`"),
    (Assigned, Error, "as for a running task"),
    (Assigned, Aborted, "cancelled"),
    (Assigned, Timeout, "as for a running task"),
    (Assigned, Lost, "its engine left, and no retry is left"),
    (Running, Ok, "the engine reported success"),
    (Running, Error, "its function raised or its command failed"),
    (Running, Aborted, "cancelled"),
    (Running, Timeout, "it exceeded its timeout"),
    (Running, Lost, "its worker or engine crashed too often"),
    (Ok, Ready, "resubmitted"),
    (Error, Ready, "resubmitted"),
    (Aborted, Ready, "resubmitted"),
    (Timeout, Ready, "resubmitted"),
    (Lost, Ready, "resubmitted"),
];

pub(super) fn is_allowed(from: TaskState, to: TaskState) -> bool {
    TRANSITIONS.iter().any(|(a, b, _)| (*a, *b) == (from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_reached_and_left() {
        for state in TaskState::ALL {
            assert!(
                state == Waiting || TRANSITIONS.iter().any(|(_, to, _)| *to == state),
                "{state} is never reached"
            );
            assert!(
                TRANSITIONS.iter().any(|(from, _, _)| *from == state),
                "{state} has no transition to another state"
            );
        }
    }

    #[test]
    fn task_states_page_lists_every_transition() {
        let page = include_str!("../../../docs/reference/task-states.md");
        for (from, to, _) in TRANSITIONS {
            assert!(
                page.contains(&format!("{from} → {to}")),
                "docs/reference/task-states.md lacks `{from} → {to}`"
            );
        }
    }
}
