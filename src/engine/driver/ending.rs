//! The end of a batch job's time: an engine leaves before it, so that no task is cut off that could have ended elsewhere; and what runs
//! when its batch system warns it may go on as long as is known to be left.
use super::Driver;
use crate::engine::link::unix_now;
use crate::engine::settings::BatchJob;
use std::time::{Duration, Instant};

/// An engine leaves when this part of its job's time is left,
const PART: f64 = 0.1;
/// ... but not later than so many seconds before the end, and not earlier.
const LATEST_S: f64 = 10.0;
const EARLIEST_S: f64 = 60.0;
/// Seconds that results and the farewell take; where less than four times as many are left, a quarter of them.
const FAREWELL_S: f64 = 2.0;
/// What a task gets where nothing is known.
const UNKNOWN_MS: u64 = 5000;

/// How many seconds before the end an engine leaves that has so many left.
fn margin(left_s: f64) -> f64 {
    (left_s * PART).clamp(LATEST_S, EARLIEST_S)
}

/// What tells an engine to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// The job's own end, by the clock.
    Clock,
    /// SIGTERM, which batch systems send before SIGKILL.
    Terminate,
    /// SIGUSR1, SIGUSR2: before the time is over (sbatch --signal), or before SIGKILL (qsub -notify).
    User,
}

/// How many seconds are left, where that is known. `ends_s`: until the job's time is over.
fn left(warning: Warning, ends_s: Option<f64>, job: &BatchJob) -> Option<f64> {
    match warning {
        Warning::Clock => ends_s,
        // It may come long before the time is over (a job that is cancelled, preempted), or just then.
        Warning::Terminate => job.after_term_s,
        Warning::User => match (ends_s.filter(|s| *s > 0.0), job.after_user_s) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        },
    }
}

/// How long a task may go on that runs now, in milliseconds: as long as there is time to stop it (`to_stop_s`) and to say so, and
/// no longer than the setting says.
fn grace_period_ms(left_s: Option<f64>, to_stop_s: f64, setting_ms: Option<u64>) -> u64 {
    let Some(left) = left_s else {
        return setting_ms.unwrap_or(UNKNOWN_MS);
    };
    let left = left.max(0.0);
    let left = left - FAREWELL_S.min(left / 4.0);
    // Where that little time is left, a task gets the signal sooner rather than never.
    let grace = ((left - to_stop_s).max(left / 2.0) * 1000.0) as u64;
    grace.min(setting_ms.unwrap_or(u64::MAX))
}

impl Driver {
    /// When to leave; none where the job has no known end.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        let left = self.facts.ends?.0 - unix_now().0;
        let until = (left - margin(left)).max(0.0);
        Some(Instant::now() + Duration::try_from_secs_f64(until).ok()?)
    }

    pub(super) fn grace_after(&self, warning: Warning) -> u64 {
        let ends_s = self.facts.ends.map(|ends| ends.0 - unix_now().0);
        let to_stop_s = (self.settings.interrupt_timeout_ms + self.settings.terminate_timeout_ms) as f64 / 1000.0;
        grace_period_ms(
            left(warning, ends_s, &self.settings.batch),
            to_stop_s,
            self.settings.grace_period_ms,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_leaves_in_time_but_not_long_before() {
        assert_eq!(margin(36_000.0), 60.0);
        assert_eq!(margin(300.0), 30.0);
        assert_eq!(margin(60.0), 10.0);
    }

    #[test]
    fn what_is_left_depends_on_who_warns() {
        let (slurm, sge) = (
            BatchJob {
                after_term_s: Some(30.0),
                after_user_s: None,
            },
            BatchJob {
                after_term_s: None,
                after_user_s: Some(60.0),
            },
        );
        assert_eq!(left(Warning::Clock, Some(50.0), &slurm), Some(50.0));
        assert_eq!(left(Warning::Terminate, Some(3000.0), &slurm), Some(30.0), "of a cancelled job");
        assert_eq!(left(Warning::User, Some(120.0), &slurm), Some(120.0), "sbatch --signal=USR1@120");
        assert_eq!(left(Warning::User, Some(3000.0), &sge), Some(60.0), "qsub -notify");
        assert_eq!(left(Warning::User, Some(20.0), &sge), Some(20.0));
        assert_eq!(left(Warning::User, None, &BatchJob::default()), None);
        assert_eq!(left(Warning::Terminate, Some(3000.0), &BatchJob::default()), None);
    }

    #[test]
    fn a_task_gets_all_that_is_left_but_what_stopping_takes_and_never_more() {
        assert_eq!(grace_period_ms(Some(60.0), 10.0, None), 48_000);
        assert_eq!(grace_period_ms(Some(30.0), 10.0, None), 18_000);
        assert_eq!(grace_period_ms(Some(30.0), 10.0, Some(7000)), 7000);
        assert_eq!(grace_period_ms(Some(2.0), 10.0, None), 750);
        assert_eq!(grace_period_ms(Some(-3.0), 10.0, None), 0);
        assert_eq!(grace_period_ms(None, 10.0, None), 5000);
        assert_eq!(grace_period_ms(None, 10.0, Some(60_000)), 60_000);
        for left in 0..200 {
            let left = f64::from(left);
            assert!(grace_period_ms(Some(left), 10.0, None) as f64 <= left * 1000.0);
        }
    }
}
