//! The launcher for batch systems: it runs the commands that the system's row defines, and the row
//! parses their output.
//!
//! Modules: `launcher` (runs the commands), `submit` (writes the script and submits it once), `queue` (the cached state of all
//! jobs), `states` (converts rows into members' states), `end` (cancels jobs and waits for their
//! end).
mod end;
mod launcher;
mod queue;
mod states;
mod submit;
#[cfg(test)]
mod tests;

pub(crate) use launcher::BatchLauncher;

use super::batch::{self, launch};
use super::{Capabilities, ControllerLaunch, EnginesLaunch, FoundEngines, LaunchError, Launched, Launcher, MemberState, StopReport, logs};
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::sys::process;
use std::time::Duration;

impl Launcher for BatchLauncher {
    fn name(&self) -> &str {
        self.system.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            remote: true,
            has_cached_state: true,
            ..Capabilities::default()
        }
    }

    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError> {
        let request = launch::controller(launch, &self.resources(), &submit::unique_suffix());
        Ok(self.launched(self.submit(request)?))
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        if launch.n == 0 {
            return Ok(Launched::new(self.system.name(), process::host()));
        }
        let unique = launch.tag.clone().unwrap_or_else(submit::unique_suffix);
        let request = launch::engines(launch, &self.resources(), &self.config.launchers.mpi, &unique)?;
        let mut job = self.submit(request)?;
        job.first_engine = launch.first;
        Ok(self.launched(job))
    }

    fn find_engines(&self, launch: &EnginesLaunch) -> FoundEngines {
        let Some(tag) = &launch.tag else { return FoundEngines::None };
        let request = launch::engines(launch, &self.resources(), &self.config.launchers.mpi, tag);
        match request.map(|request| self.find_submitted(request)) {
            Ok(Ok(Some(mut job))) => {
                job.first_engine = launch.first;
                FoundEngines::Launched(Box::new(self.launched(job)))
            }
            Ok(Ok(None)) => FoundEngines::None,
            Ok(Err(())) | Err(_) => FoundEngines::Unknown,
        }
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        let snapshot = self.queue.get(self, &launched.jobs, self.queue.interval());
        launched
            .jobs
            .iter()
            .flat_map(|job| states::element_states(job, &snapshot, crate::sys::clock::unix_now()))
            .collect()
    }

    /// Waits until the jobs are gone, and fails with those that remain.
    fn stop(&self, launched: &Launched, _grace: Duration) -> Result<StopReport, LaunchError> {
        self.end(launched)
    }

    fn log_tail(&self, launched: &Launched, index: usize, lines: usize) -> String {
        launched
            .members()
            .get(index)
            .map_or_else(String::new, |m| logs::tail(&m.log, 0, lines))
    }

    fn describe(&self, launched: &Launched) -> String {
        let jobs: Vec<&str> = launched.jobs.iter().map(|job| job.id.as_str()).collect();
        let word = if jobs.len() == 1 { "job" } else { "jobs" };
        format!("{} {word} {}", self.system.name(), jobs.join(" "))
    }
}

/// The launcher of a batch system; none if there is no such system.
pub(crate) fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Option<BatchLauncher> {
    batch::by_name(name).map(|system| BatchLauncher::new(system, profile, config))
}
