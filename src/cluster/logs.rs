//! The log files of a cluster.
use super::{ClusterState, launch};
use crate::launchers::{BatchJob, LogError, Process};
use crate::profile::{Config, ProfileDir};
use std::path::PathBuf;

/// The last lines of the logs of `wanted` engines whose logs are on other hosts, by number, or why they cannot be fetched. May take
/// seconds.
pub(crate) fn remote(
    profile: &ProfileDir,
    cluster_id: &str,
    wanted: impl Fn(u32) -> bool,
    lines: usize,
) -> Vec<(u32, Result<String, LogError>)> {
    let config = Config::load(profile).unwrap_or_default();
    let state = ClusterState::read(profile, cluster_id).ok().flatten();
    let mut found = Vec::new();
    for launched in state.into_iter().flat_map(|s| s.engines) {
        let number = |process: &Process| -> Option<u32> {
            process.directory.as_ref()?;
            process.log.file_stem()?.to_str()?.rsplit_once('-')?.1.parse().ok()
        };
        let numbers: Vec<Option<u32>> = launched.processes.iter().map(number).collect();
        let places: Vec<usize> = (0..numbers.len()).filter(|place| numbers[*place].is_some_and(&wanted)).collect();
        if let (false, Ok(launcher)) = (places.is_empty(), launch::launcher(&launched.launcher, profile, &config)) {
            let hosts = launcher.remote_hosts();
            let logs = hosts.map(|hosts| hosts.logs(&launched, &places, lines)).unwrap_or_default();
            found.extend(
                logs.into_iter()
                    .filter_map(|(place, log)| Some((numbers.get(place).copied()??, log))),
            );
        }
    }
    found
}

/// The log files of batch jobs, each with the number of its first engine: of the recorded jobs, or of the latest job of a stopped
/// cluster.
pub(crate) fn of_jobs(profile: &ProfileDir, cluster_id: &str) -> Vec<(u32, PathBuf)> {
    let state = ClusterState::read(profile, cluster_id).ok().flatten();
    let jobs: Vec<BatchJob> = state
        .into_iter()
        .flat_map(|s| s.engines)
        .flat_map(|launched| launched.jobs)
        .collect();
    if !jobs.is_empty() {
        let of_element = |job: &BatchJob, element: u32| {
            let number = job.first_engine + (element.max(1) - 1) * job.engines_per_element;
            (number, job.log.replace("{}", &element.to_string()).into())
        };
        return jobs
            .iter()
            .flat_map(|job| job.elements.iter().map(move |element| of_element(job, *element)))
            .collect();
    }
    let stem = match cluster_id {
        "" => "engines-".to_string(),
        id => format!("engines-{id}-"),
    };
    let mut found: Vec<(u64, u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(profile.log_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        // Only `<job>_<element>` or `<job>.<element>`: "engines-7-18_1" belongs to cluster 7.
        let parts = name
            .to_str()
            .and_then(|n| n.strip_prefix(&stem)?.strip_suffix(".log")?.split_once(['_', '.']));
        let numbers = parts.and_then(|(job, element)| Some((job.parse().ok()?, element.parse::<u32>().ok()?)));
        if let Some((job, element)) = numbers {
            found.push((job, element.saturating_sub(1), entry.path()));
        }
    }
    let latest = found.iter().map(|(job, ..)| *job).max();
    found.retain(|(job, ..)| Some(*job) == latest);
    found.sort();
    found.into_iter().map(|(_, number, path)| (number, path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_the_latest_job_are_found_when_the_cluster_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        for name in [
            "engines-9_1.log",
            "engines-18_1.log",
            "engines-18_2.log",
            "engines-7-20_1.log",
            "engines-x.log",
        ] {
            std::fs::write(profile.log_dir().join(name), "").unwrap();
        }
        let found = |id: &str| -> Vec<String> {
            let name = |(number, path): (u32, PathBuf)| format!("{number} {}", path.file_name().unwrap().to_string_lossy());
            of_jobs(&profile, id).into_iter().map(name).collect()
        };
        assert_eq!(found(""), ["0 engines-18_1.log", "1 engines-18_2.log"]);
        assert_eq!(found("7"), ["0 engines-7-20_1.log"]);
    }
}
