//! The log files of a cluster's processes.
use crate::profile::ProfileDir;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// `controller`, or `engine-<number of the process>`.
    pub name: String,
    pub path: PathBuf,
}

/// Those that exist: the controller's first, then the engines' by number.
pub fn logs(profile: &ProfileDir, cluster_id: &str) -> Vec<LogFile> {
    let controller = profile.controller_log(cluster_id);
    let mut engines: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(profile.log_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".log")?.rsplit_once('-')?.1.parse().ok());
        // The number alone does not tell whose it is: "engine-7-0" may be cluster 7's.
        if let Some(number) = number.filter(|n| profile.engine_log(cluster_id, *n) == entry.path()) {
            engines.push((number, entry.path()));
        }
    }
    engines.sort();
    let engines = engines.into_iter().map(|(number, path)| LogFile {
        name: format!("engine-{number}"),
        path,
    });
    let controller = controller.exists().then(|| LogFile {
        name: "controller".into(),
        path: controller,
    });
    controller.into_iter().chain(engines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_another_cluster_in_the_profile_are_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        for name in [
            "controller.log",
            "controller-7.log",
            "engine-10.log",
            "engine-9.log",
            "engine-7-0.log",
            "engine-.log",
            "other.log",
        ] {
            std::fs::write(profile.log_dir().join(name), "").unwrap();
        }
        let names = |id: &str| logs(&profile, id).into_iter().map(|l| l.name).collect::<Vec<_>>();
        assert_eq!(names(""), ["controller", "engine-9", "engine-10"]);
        assert_eq!(names("7"), ["controller", "engine-0"]);
        assert!(names("8").is_empty());
    }
}
