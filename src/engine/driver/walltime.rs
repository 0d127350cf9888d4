//! How long before the time limit of a batch job an engine leaves, and for how long its running task may continue.
use crate::engine::settings::BatchJob;

/// An engine leaves when this fraction of its job's time is left,
const FRACTION: f64 = 0.1;
/// ... but at the latest `LATEST_S` and at the earliest `EARLIEST_S` seconds before the end.
const LATEST_S: f64 = 10.0;
const EARLIEST_S: f64 = 60.0;
/// Seconds reserved for sending results and unregistering; at most a quarter of the remaining time.
const RESERVE_S: f64 = 2.0;
/// The grace period of a task if the remaining time is unknown.
const DEFAULT_GRACE_MS: u64 = 5000;

/// How many seconds before the end an engine leaves that has `left_s` seconds.
pub(super) fn margin(left_s: f64) -> f64 {
    (left_s * FRACTION).clamp(LATEST_S, EARLIEST_S)
}

/// The cause for an engine to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// The known end of the job.
    Clock,
    /// SIGTERM, which batch systems send before SIGKILL.
    Terminate,
    /// SIGUSR1, SIGUSR2: before the time is over (sbatch --signal), or before SIGKILL (qsub -notify).
    User,
}

/// Number of seconds left, if known. `ends_s`: seconds until the job's time limit.
pub(super) fn seconds_left(warning: Warning, ends_s: Option<f64>, job: &BatchJob) -> Option<f64> {
    match warning {
        Warning::Clock => ends_s,
        // SIGTERM may arrive long before the time limit (cancelled or preempted job) or at the limit.
        Warning::Terminate => job.after_term_s,
        Warning::User => match (ends_s.filter(|s| *s > 0.0), job.after_user_s) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        },
    }
}

/// Grace period of the running task in milliseconds: the time left minus the time to stop it (`to_stop_s`) and to report that,
/// limited by the setting.
pub(super) fn grace_period_ms(left_s: Option<f64>, to_stop_s: f64, setting_ms: Option<u64>) -> u64 {
    let Some(seconds_left) = left_s else {
        return setting_ms.unwrap_or(DEFAULT_GRACE_MS);
    };
    let seconds_left = seconds_left.max(0.0);
    let seconds_left = seconds_left - RESERVE_S.min(seconds_left / 4.0);
    // If there is too little time left, stop the task early rather than not at all.
    let grace = ((seconds_left - to_stop_s).max(seconds_left / 2.0) * 1000.0) as u64;
    grace.min(setting_ms.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margin_before_the_time_limit_is_bounded() {
        assert_eq!(margin(36_000.0), 60.0);
        assert_eq!(margin(300.0), 30.0);
        assert_eq!(margin(60.0), 10.0);
    }

    #[test]
    fn time_left_depends_on_the_warning() {
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
        assert_eq!(seconds_left(Warning::Clock, Some(50.0), &slurm), Some(50.0));
        assert_eq!(
            seconds_left(Warning::Terminate, Some(3000.0), &slurm),
            Some(30.0),
            "of a cancelled job"
        );
        assert_eq!(
            seconds_left(Warning::User, Some(120.0), &slurm),
            Some(120.0),
            "sbatch --signal=USR1@120"
        );
        assert_eq!(seconds_left(Warning::User, Some(3000.0), &sge), Some(60.0), "qsub -notify");
        assert_eq!(seconds_left(Warning::User, Some(20.0), &sge), Some(20.0));
        assert_eq!(seconds_left(Warning::User, None, &BatchJob::default()), None);
        assert_eq!(seconds_left(Warning::Terminate, Some(3000.0), &BatchJob::default()), None);
    }

    #[test]
    fn grace_is_the_time_left_minus_the_time_to_stop() {
        assert_eq!(grace_period_ms(Some(60.0), 10.0, None), 48_000);
        assert_eq!(grace_period_ms(Some(30.0), 10.0, None), 18_000);
        assert_eq!(grace_period_ms(Some(30.0), 10.0, Some(7000)), 7000);
        assert_eq!(grace_period_ms(Some(2.0), 10.0, None), 750);
        assert_eq!(grace_period_ms(Some(-3.0), 10.0, None), 0);
        assert_eq!(grace_period_ms(None, 10.0, None), 5000);
        assert_eq!(grace_period_ms(None, 10.0, Some(60_000)), 60_000);
        for seconds_left in 0..200 {
            let seconds_left = f64::from(seconds_left);
            assert!(grace_period_ms(Some(seconds_left), 10.0, None) as f64 <= seconds_left * 1000.0);
        }
    }
}
