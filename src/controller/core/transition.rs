//! Every change of state that a task may make; `docs/reference/task-states.md` shows the same table.
use crate::model::task::TaskState::{self, *};

/// From, to, and what makes it so.
pub const TRANSITIONS: &[(TaskState, TaskState, &str)] = &[
    (Waiting, Ready, "what it depends on has finished well"),
    (Waiting, Aborted, "cancelled, or what it depends on failed"),
    (Waiting, Timeout, "its dependencies were not met in time"),
    (Ready, Assigned, "sent to an engine"),
    (Ready, Aborted, "cancelled, or no engine can ever run it"),
    (Ready, Timeout, "no engine was there for it in time"),
    (Ready, Lost, "the engine that it was meant for has gone"),
    (Assigned, Running, "the engine has begun it"),
    (Assigned, Ready, "given back, or its engine has gone"),
    (Running, Ready, "to be tried again"),
    (Assigned, Ok, "the engine said so, without a word in between for short tasks"),
    (Assigned, Error, "the same"),
    (Assigned, Aborted, "cancelled"),
    (Assigned, Timeout, "the same as for a running one"),
    (Assigned, Lost, "its engine has gone, and it may not be tried again"),
    (Running, Ok, "the engine said so"),
    (Running, Error, "its function raised, its command failed"),
    (Running, Aborted, "cancelled"),
    (Running, Timeout, "it ran longer than its timeout"),
    (Running, Lost, "its worker or engine died too often"),
    (Ok, Ready, "resubmitted"),
    (Error, Ready, "resubmitted"),
    (Aborted, Ready, "resubmitted"),
    (Timeout, Ready, "resubmitted"),
    (Lost, Ready, "resubmitted"),
];

pub fn is_allowed(from: TaskState, to: TaskState) -> bool {
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
            assert!(TRANSITIONS.iter().any(|(from, _, _)| *from == state), "{state} is never left");
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
