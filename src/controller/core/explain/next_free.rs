//! When an engine is expected to take another task.
use super::Held;
use crate::model::UnixTime;

/// Seconds until an engine holds fewer than `below` of these tasks, which are in order; None if durations are unknown, or the
/// running task takes longer than expected. `works_for`: the seconds since the engine began the first, if that has not reported it.
pub(super) fn seconds(held: &[Held], below: u32, works_for: f64, now: UnixTime) -> Option<f64> {
    let to_finish = (held.len() + 1).saturating_sub(below.max(1) as usize);
    let mut sum = 0.0;
    let mut elapsed = works_for;
    for task in held.iter().take(to_finish) {
        let left = task.mean_s? - task.began.map_or(elapsed, |began| now.since(began));
        if left < 0.0 {
            return None;
        }
        sum += left;
        elapsed = 0.0;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MapId, TaskId};

    fn held(began: Option<f64>, mean_s: Option<f64>) -> Held {
        Held {
            task: TaskId::new(MapId(1), 0),
            sent: 1,
            began: began.map(UnixTime),
            mean_s,
        }
    }

    #[test]
    fn the_time_left_is_that_of_the_running_task_and_those_before_the_free_place() {
        let now = UnixTime(1000.0);
        let tasks = [held(Some(970.0), Some(100.0)), held(None, Some(10.0)), held(None, Some(5.0))];
        assert_eq!(seconds(&tasks, 3, 1.0, now), Some(70.0));
        assert_eq!(seconds(&tasks, 2, 1.0, now), Some(80.0));
        assert_eq!(seconds(&tasks, 1, 1.0, now), Some(85.0));
        assert_eq!(seconds(&tasks[1..], 1, 4.0, now), Some(11.0), "since the engine began the first");
        assert_eq!(seconds(&[held(Some(970.0), None)], 1, 30.0, now), None, "an unknown duration");
        assert_eq!(seconds(&[held(Some(970.0), Some(25.0))], 1, 30.0, now), None, "overdue");
        assert_eq!(seconds(&[held(None, Some(25.0))], 1, 30.0, now), None, "overdue");
    }
}
