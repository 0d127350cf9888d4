//! Finds the clusters that run on another host, by their connection files and processes.
use crate::connection::ConnectionFile;
use crate::model::shell::quoted;
use crate::ssh::probe::Host;
use crate::ssh::{Ssh, SshError};
use crate::sys::process::ProcessId;
use std::path::Path;
use std::time::Duration;

/// Home directories of clusters may be slow.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection file found on the other host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FoundFile {
    pub path: String,
    pub profile: String,
    pub cluster_id: String,
    pub file: ConnectionFile,
}

/// Returns all client files of all remote profiles: those whose controllers are not known to be gone, and those whose controllers are.
pub(crate) async fn clusters(ssh: &Ssh, host: &Host, ipython_dir: Option<&str>) -> Result<(Vec<FoundFile>, Vec<FoundFile>), SshError> {
    let dir = ipython_dir.unwrap_or(&host.ipython_dir);
    let script = format!(
        "for f in {}/profile_*/security/ipcontroller*-client.json; do\n[ -r \"$f\" ] || continue\necho \"file $f\"\ncat \"$f\" | tr '\\n' ' '\necho\ndone\n",
        quoted(dir)
    );
    let text = ssh.ask(&script, TIMEOUT).await?;
    let files = parse_files(&text);
    // Only processes of that same host can be checked.
    let here: Vec<u32> = files.iter().filter_map(|f| of_host(f, host)).collect();
    if here.is_empty() {
        return Ok((files, Vec::new()));
    }
    let pids: Vec<String> = here.iter().map(u32::to_string).collect();
    let script = format!(
        "{}for p in {}; do\n[ -r /proc/$p/stat ] && echo \"process $(cat /proc/$p/stat)\"\ndone\n:\n",
        ProcessId::ABOUT,
        pids.join(" ")
    );
    let processes = ssh.ask(&script, TIMEOUT).await?;
    Ok(files.into_iter().partition(|found| !is_gone(found, host, &processes)))
}

/// Whether the process that wrote a file is known to have ended, according to the host's report.
fn is_gone(found: &FoundFile, host: &Host, processes: &str) -> bool {
    let Some(keys) = found.file.pcluster.as_ref().filter(|_| of_host(found, host).is_some()) else {
        return false;
    };
    let value = |key: &str| processes.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    let (recorded, boot_id) = (&keys.process, value("boot "));
    let stats = processes.lines().filter_map(|line| line.strip_prefix("process "));
    let running = stats
        .filter_map(|stat| ProcessId::from_script(processes, stat))
        .find(|process| process.pid == recorded.pid);
    // Without /proc, or for a process in another container, the state is unknown.
    if boot_id.is_empty() {
        return false;
    }
    if recorded.boot_id.is_empty() {
        return running.is_none();
    }
    match (recorded.boot_id == boot_id, recorded.pid_namespace == value("pidns ")) {
        (false, _) => true,
        (true, false) => false,
        (true, true) => running.is_none_or(|process| process.ticks != recorded.ticks),
    }
}

/// The process that wrote a file, if it is on this host.
fn of_host(found: &FoundFile, host: &Host) -> Option<u32> {
    found
        .file
        .pcluster
        .as_ref()
        .filter(|keys| keys.process.host == host.name)
        .map(|keys| keys.process.pid)
}

/// Parses `file PATH`, followed by its text in one line. Malformed entries are skipped.
fn parse_files(text: &str) -> Vec<FoundFile> {
    let mut files = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(path) = line.strip_prefix("file ") else { continue };
        let Some(file) = lines.next().and_then(|text| ConnectionFile::parse(text, Path::new(path)).ok()) else {
            continue;
        };
        // The file of that host's own tunnel is not a cluster of that host.
        if file.pcluster.as_ref().is_some_and(|keys| keys.tunnel.is_some()) {
            continue;
        }
        let mut parts = path.rsplit('/');
        let (name, profile) = (parts.next(), parts.nth(1));
        let id = name.and_then(|n| n.strip_prefix("ipcontroller")?.strip_suffix("-client.json"));
        if let (Some(profile), Some(id)) = (profile.and_then(|p| p.strip_prefix("profile_")), id) {
            files.push(FoundFile {
                path: path.to_string(),
                profile: profile.to_string(),
                cluster_id: id.strip_prefix('-').unwrap_or(id).to_string(),
                file,
            });
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_controller_is_identified_by_boot_namespace_and_ticks() {
        let host = Host {
            name: "n".into(),
            ..Host::default()
        };
        let report = |boot: &str, namespace: &str, ticks: u32| {
            format!("node n\nboot {boot}\npidns {namespace}\nprocess 7 (x) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 9 9\n")
        };
        let mut file = crate::connection::file::tests::example();
        let keys = file.pcluster.as_mut().unwrap();
        let stat = "7 (x) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 500 9 9";
        keys.process = ProcessId::from_script(&report("b", "pid:[1]", 0), stat).unwrap();
        let mut found = FoundFile {
            path: "/x".into(),
            profile: "x".into(),
            cluster_id: String::new(),
            file,
        };
        let gone = |processes: String| is_gone(&found, &host, &processes);
        assert!(!gone(report("b", "pid:[1]", 500)));
        assert!(gone(report("b", "pid:[1]", 501)));
        assert!(gone(report("c", "pid:[1]", 500)));
        assert!(!gone(report("b", "pid:[2]", 501)), "it may run in another container");
        assert!(!gone("node n\nboot \n".into()), "it has no /proc");
        found.file.pcluster.as_mut().unwrap().process = serde_json::from_str(r#"{"pid": 7, "host": "n", "started": 1.0}"#).unwrap();
        assert!(!is_gone(&found, &host, &report("b", "pid:[1]", 500)), "of 0.1.0");
        assert!(is_gone(&found, &host, "node n\nboot b\n"));
    }

    #[test]
    fn files_are_parsed_despite_text_between_them() {
        let file = r#"{"ssh": "", "interface": "tcp://127.0.0.1", "registration": 1, "control": 2, "mux": 3, "task": 4, "iopub": 5, "notification": 6, "broadcast": 7, "key": "abc", "curve_serverkey": null, "location": "host", "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256"}"#;
        let text = format!(
            "motd\nfile /h/u/.ipython/profile_a/security/ipcontroller-client.json\n{file}\nfile /h/u/.ipython/profile_b/security/ipcontroller-x-client.json\nbroken\n\
             file /h/u/.ipython/profile_b c/security/ipcontroller-night-1-client.json\n{file}\n"
        );
        let found: Vec<(String, String)> = parse_files(&text).into_iter().map(|f| (f.profile, f.cluster_id)).collect();
        assert_eq!(found, [("a".into(), String::new()), ("b c".into(), "night-1".into())]);
    }
}
