//! The launcher over a batch system: what its row says is run, and what is answered is understood by the row.
//!
//! Parts: `submit` (a script is kept and submitted, once), `queue` (what the system says of all jobs, asked seldom), `states`
//! (rows become members' states).
mod queue;
mod states;
mod submit;
#[cfg(test)]
mod tests;

use super::batch::{self, BatchSystem, CommandLine, JobId, JobTarget, Output, launch};
use super::command::{Here, RunError, Runner};
use super::launched::Launched;
use super::{ControllerLaunch, Ended, EnginesLaunch, Job, LaunchError, Launcher, MemberState, Stage, logs};
use crate::connection::process;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::profile::config::resources::Resources;
use queue::Queue;
use std::sync::Arc;
use std::time::Duration;

/// A job's answer that is newer than this is new enough to decide what is to be cancelled.
const NEW: Duration = Duration::from_secs(2);

pub struct Jobs {
    system: &'static dyn BatchSystem,
    runner: Arc<dyn Runner>,
    profile: ProfileDir,
    config: Config,
    queue: Queue,
}

impl Jobs {
    pub fn new(system: &'static dyn BatchSystem, profile: &ProfileDir, config: &Config) -> Jobs {
        Jobs::with_runner(system, profile, config, Arc::new(Here))
    }

    /// Its commands are run by another, perhaps elsewhere.
    pub fn with_runner(system: &'static dyn BatchSystem, profile: &ProfileDir, config: &Config, runner: Arc<dyn Runner>) -> Jobs {
        Jobs {
            system,
            queue: Queue::new(system, profile, config),
            runner,
            profile: profile.clone(),
            config: config.clone(),
        }
    }

    fn resources(&self) -> Resources {
        self.config.launchers.of(self.system.name()).cloned().unwrap_or_default()
    }

    /// How long one command may take.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.config.launcher.command_ms)
    }

    fn run(&self, command: &CommandLine) -> Result<Output, RunError> {
        tracing::debug!("{command}");
        self.runner.run(command, self.patience())
    }

    /// The row in the dialect that the job was submitted in.
    fn row(&self, job: &Job) -> &'static dyn BatchSystem {
        match job.dialect.as_str() {
            "" => self.system,
            dialect => self.system.with_dialect(dialect).unwrap_or(self.system),
        }
    }

    /// The row in this place's dialect.
    fn row_here(&self) -> &'static dyn BatchSystem {
        let Some(question) = self.system.dialect_command() else {
            return self.system;
        };
        match self.run(&question) {
            Ok(said) => self.system.of_dialect(&said).unwrap_or(self.system),
            Err(_) => self.system,
        }
    }

    fn launched(&self, job: Job) -> Launched {
        Launched {
            jobs: vec![job],
            ..Launched::new(self.system.name(), process::host())
        }
    }

    /// Those jobs of a launch that are there under their name, with the elements that are not over. Of a job that the system
    /// has forgotten there is nothing to end, and its number may be another's by now.
    fn ours(&self, launched: &Launched) -> Result<Vec<(&'static dyn BatchSystem, JobTarget, usize)>, LaunchError> {
        let mut targets = Vec::new();
        let known = self.queue.ask(self, &launched.jobs, NEW);
        if let Some(failure) = known.failure() {
            return Err(LaunchError::Batch {
                system: self.system.title(),
                doing: "ask about the jobs",
                command: failure.command.clone(),
                said: failure.said.clone(),
            });
        }
        for job in &launched.jobs {
            let row = self.row(job);
            let id = JobId(job.id.clone());
            let there: Vec<_> = known.rows().iter().filter(|r| r.job == id).collect();
            if there.iter().any(|r| r.name.as_ref().is_some_and(|name| *name != job.name)) {
                tracing::warn!("{} job {} is another's by now: it is left alone", self.system.title(), job.id);
                continue;
            }
            let states = states::of_job(job, &known, crate::launchers::now());
            let left: Vec<u32> = job
                .elements
                .iter()
                .zip(&states)
                .filter(|(_, state)| !state.has_ended())
                .map(|(element, _)| *element)
                .collect();
            if left.is_empty() {
                continue;
            }
            if job.is_whole() {
                targets.push((row, JobTarget { job: id, element: None }, left.len()));
                continue;
            }
            targets.extend(left.into_iter().map(|element| {
                let target = JobTarget {
                    job: id.clone(),
                    element: Some(element),
                };
                (row, target, 1)
            }));
        }
        Ok(targets)
    }
}

impl Launcher for Jobs {
    fn name(&self) -> &str {
        self.system.name()
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn is_asked_seldom(&self) -> bool {
        true
    }

    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError> {
        let request = launch::controller(launch, &self.resources(), &submit::unique());
        Ok(self.launched(self.submit(request)?))
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        if launch.n == 0 {
            return Ok(Launched::new(self.system.name(), process::host()));
        }
        let request = launch::engines(launch, &self.resources(), &self.config.launchers.mpi, &submit::unique())?;
        let mut job = self.submit(request)?;
        job.first_engine = launch.first;
        Ok(self.launched(job))
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        let known = self.queue.ask(self, &launched.jobs, self.queue.interval());
        launched
            .jobs
            .iter()
            .flat_map(|job| states::of_job(job, &known, crate::launchers::now()))
            .collect()
    }

    fn signal(&self, launched: &Launched, signal: i32) -> Result<usize, LaunchError> {
        let name = nix::sys::signal::Signal::try_from(signal).map_or("TERM", |s| s.as_str().trim_start_matches("SIG"));
        let mut sent = 0;
        for (row, target, count) in self.ours(launched)? {
            if let Some(command) = row.signal_command(&[target], name) {
                self.order("signal the job", row, &command)?;
                sent += count;
            }
        }
        Ok(sent)
    }

    fn stop(&self, launched: &Launched, _grace: Duration) -> Result<Ended, LaunchError> {
        let mut ended = Ended::default();
        let mut targets = self.ours(launched)?;
        while let Some((row, _, _)) = targets.first() {
            let row = *row;
            let (same, others) = targets.into_iter().partition(|(r, _, _)| r.dialect() == row.dialect());
            targets = others;
            let same: Vec<(_, JobTarget, usize)> = same;
            ended.cancelled += same.iter().map(|(_, _, count)| count).sum::<usize>();
            let same: Vec<JobTarget> = same.into_iter().map(|(_, target, _)| target).collect();
            self.order("cancel the jobs", row, &row.cancel_command(&same))?;
            self.queue.forget();
        }
        Ok(ended)
    }

    fn log_end(&self, launched: &Launched, place: usize, lines: usize) -> String {
        launched
            .members()
            .get(place)
            .map_or_else(String::new, |m| logs::end(&m.log, 0, lines))
    }

    fn describe(&self, launched: &Launched) -> String {
        let jobs: Vec<&str> = launched.jobs.iter().map(|job| job.id.as_str()).collect();
        let word = if jobs.len() == 1 { "job" } else { "jobs" };
        format!("{} {word} {}", self.system.name(), jobs.join(" "))
    }
}

impl Jobs {
    /// Runs a command whose only answer is that it was done.
    fn order(&self, doing: &'static str, row: &dyn BatchSystem, command: &CommandLine) -> Result<(), LaunchError> {
        let failed = |said: String| LaunchError::Batch {
            system: self.system.title(),
            doing,
            command: command.to_string(),
            said,
        };
        let output = self.run(command).map_err(|e| failed(e.to_string()))?;
        row.parse_cancel(&output).map_err(|e| failed(e.said))
    }
}

/// The launcher of a batch system, if there is one of this name.
pub fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Option<Jobs> {
    batch::by_name(name).map(|system| Jobs::new(system, profile, config))
}

/// In the queue, on its way there, or there.
fn stage(status: &batch::JobStatus) -> Stage {
    use batch::JobStatus::*;
    match status {
        Queued | Held | Stuck | Starting | Requeued => Stage::Queued,
        Running | Completing => Stage::Running,
        Suspended => Stage::Suspended,
        Unknown(_) => Stage::Unknown,
        Completed | Failed | Cancelled | TimedOut | NodeFailed | OutOfMemory | Preempted => Stage::Ended,
    }
}
