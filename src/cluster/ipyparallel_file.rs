//! ipyparallel's file of a cluster (`security/cluster-<id>.json`), with which `ipcluster list`, `ipyparallel.Cluster.from_file` and
//! Jupyter's list of clusters find it. It names the supervisors: ipyparallel ends a cluster by SIGTERM to each process.
//!
//! It holds only processes of this host: ipyparallel's launcher `local` supports no others. It omits logs, which ipyparallel would
//! remove with the cluster.
//!
//! Source: ipyparallel 9, `Cluster.to_dict` in cluster/cluster.py, `LocalProcessLauncher` in cluster/launcher.py.
use super::ClusterState;
use crate::launchers::Launched;
use crate::profile::ProfileDir;
use crate::sys::private_file;
use serde_json::{Map, Value, json};
use std::io;

/// Writes the file for the current state; removes it if the controller is not on this host.
pub(super) fn update(profile: &ProfileDir, state: &ClusterState) {
    let Some(file) = describe(profile, state) else {
        return remove(profile, &state.cluster_id);
    };
    let path = profile.ipyparallel_file(&state.cluster_id);
    let written = serde_json::to_vec(&file)
        .map_err(io::Error::from)
        .and_then(|text| private_file::write(&path, &text));
    if let Err(error) = written {
        tracing::warn!("cannot write {}: {error}", path.display());
    }
}

pub(super) fn remove(profile: &ProfileDir, cluster_id: &str) {
    let path = profile.ipyparallel_file(cluster_id);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

fn describe(profile: &ProfileDir, state: &ClusterState) -> Option<Value> {
    let (id, directory) = (&state.cluster_id, profile.path().to_string_lossy());
    let of_process = |pid: u32| json!({"cluster_id": id, "output_file": "", "pid": pid, "profile_dir": directory, "state": "running"});
    let controller = pids(state.controller.as_ref()?).next()?;
    let mut sets = Map::new();
    for (number, launched) in state.engines.iter().enumerate() {
        let mut engines = Map::new();
        for (at, pid) in pids(launched).enumerate() {
            let mut engine = of_process(pid);
            engine["n"] = 1.into();
            engines.insert(at.to_string(), engine);
        }
        if !engines.is_empty() {
            let set = json!({
                "cluster_id": id, "n": engines.len(), "pid": -1, "profile_dir": directory, "state": "running", "engines": engines,
            });
            sets.insert(format!("pcluster-{number}"), set);
        }
    }
    Some(json!({
        "cluster": {
            "cluster_id": id, "controller_args": [], "controller_ip": "", "controller_location": "", "delay": 1.0, "n": state.n,
            "profile_dir": directory, "class": "ipyparallel.cluster.cluster.Cluster",
        },
        "controller": {"class": "local", "state": of_process(controller)},
        "engines": {"class": "local", "sets": sets},
    }))
}

/// The processes of this host that are not leaving.
fn pids(launched: &Launched) -> impl Iterator<Item = u32> {
    let here = launched.processes.iter().filter(|process| process.on.is_none() && !process.leaving);
    here.map(|process| process.id.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launchers::Process;
    use crate::sys::process::ProcessId;

    fn launched(pids: &[u32]) -> Launched {
        let process = |pid: &u32| Process {
            id: ProcessId {
                pid: *pid,
                ..ProcessId::default()
            },
            ..Process::default()
        };
        Launched {
            processes: pids.iter().map(process).collect(),
            ..Launched::new("local", "h".into())
        }
    }

    #[test]
    fn the_file_follows_the_state_and_lists_local_processes() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let path = profile.ipyparallel_file("night");
        assert!(path.ends_with("security/cluster-night.json"));
        let mut state = ClusterState::new("night", "/".into());
        state.write(&profile).unwrap();
        assert!(!path.exists(), "no controller is known");
        state.controller = Some(launched(&[7]));
        let mut far = launched(&[10]);
        far.processes[0].on = Some("node1".into());
        let mut engines = launched(&[8, 9]);
        engines.processes[1].leaving = true;
        state.engines = vec![engines, far];
        state.write(&profile).unwrap();
        let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(file["controller"]["state"]["pid"], 7);
        let sets = file["engines"]["sets"].as_object().unwrap();
        assert_eq!(sets.keys().collect::<Vec<_>>(), ["pcluster-0"]);
        assert_eq!(sets["pcluster-0"]["engines"].as_object().unwrap().len(), 1);
        assert_eq!(sets["pcluster-0"]["engines"]["0"]["pid"], 8);
        remove(&profile, "night");
        remove(&profile, "night");
        assert!(!path.exists());
    }
}
