//! Finds and ends the processes of a launch on a remote host. A process is ours only on the host of that name, with its start time;
//! processes that a killed supervisor left are found by the mark in their environment.
use super::error::HostError;
use super::start::PRIVATE;
use crate::launchers::{MemberState, Process, StopReport};
use crate::model::shell::quoted;
use crate::ssh::Ssh;
use crate::ssh::shell::PROCESS_FUNCTIONS;
use crate::sys::process::{self, Mark, ProcessId, Unseen};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of bytes read of one log.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// Timeout for SIGKILL to take effect, in tenths of a second.
const KILL_TIMEOUT_DS: u32 = 100;

/// A process that runs on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RemoteProcess {
    id: ProcessId,
    session: u32,
}

/// The recorded processes that run, each with its index.
type Running = Vec<(usize, RemoteProcess)>;

pub(super) async fn states(host: &str, processes: &[(usize, Process)]) -> Result<Vec<MemberState>, HostError> {
    let text = Ssh::ask_host(host, &query(processes), TIMEOUT).await?;
    let running = running(&text, processes)?;
    let state = |at: usize| match running.iter().any(|(index, _)| *index == at) {
        true => MemberState::running(),
        false => MemberState::ended(""),
    };
    Ok((0..processes.len()).map(state).collect())
}

/// Sends SIGTERM, and after `grace` SIGKILL, also to the rest of their sessions; then removes their private files.
pub(super) async fn end(host: &str, processes: &[(usize, Process)], grace: Duration) -> Result<StopReport, HostError> {
    let ssh = Ssh::connect_to(host).await?;
    let ended = async {
        let running = running(&ssh.ask(&query(processes), TIMEOUT).await?, processes)?;
        // End the rest of a session only if its leader was certainly ours.
        let sessions: Vec<String> = running.iter().map(|(_, found)| found.session.to_string()).collect();
        let directories = directories(processes);
        let script = end_script(&targets(&running), &sessions.join(" "), &directories, grace);
        let text = ssh.ask(&script, TIMEOUT + grace).await?;
        match text.lines().find_map(|line| line.strip_prefix("left ")) {
            Some(left) if !left.trim().is_empty() => Err(HostError::Unkillable(left.trim().into())),
            _ => Ok(StopReport {
                terminated: count(&text, "terminated"),
                killed: count(&text, "killed"),
                ..StopReport::default()
            }),
        }
    };
    let ended = ended.await;
    ssh.close().await;
    ended
}

pub(super) async fn log_tail(process: &Process, lines: usize) -> Result<String, HostError> {
    let ssh = Ssh::connect_to(process.on.as_deref().unwrap_or_default()).await?;
    let path = process.log.to_string_lossy();
    let tail = ssh.run(&["tail", "-n", &lines.to_string(), "--", &path], b"", TIMEOUT).await;
    ssh.close().await;
    Ok(String::from_utf8_lossy(&tail?.stdout).trim_end().to_string())
}

/// The last lines of the logs of these processes, by index.
pub(super) async fn log_ends(host: &str, processes: &[(usize, Process)], lines: usize) -> Result<BTreeMap<usize, String>, HostError> {
    // Bytes that were never part of a log.
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let mut script = String::new();
    for (index, process) in processes {
        let path = quoted(process.log.to_string_lossy());
        script.push_str(&format!(
            "echo; echo '{mark} {index}'; tail -c {MAX_LOG_BYTES} -- {path} 2>&1 | tail -n {lines}\n"
        ));
    }
    let text = Ssh::ask_host(host, &script, TIMEOUT).await?;
    let mark = format!("\n{mark} ");
    let parts = text.split(&mark).skip(1).filter_map(|part| part.split_once('\n'));
    Ok(parts
        .filter_map(|(index, log)| Some((index.parse().ok()?, log.to_string())))
        .collect())
}

/// The parents of these processes, if they run.
pub(super) async fn parents(host: &str, pids: &[u32]) -> Result<Vec<u32>, HostError> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let script = format!(
        "{PROCESS_FUNCTIONS}for p in {}; do stat_fields $p && {{ set -- $f; echo \"parent $2\"; }}; done\n:",
        pids.join(" ")
    );
    let text = Ssh::ask_host(host, &script, TIMEOUT).await?;
    let found = text.lines().filter_map(|line| line.strip_prefix("parent ")?.parse().ok());
    // Process 1 adopts those whose parent has ended.
    Ok(found.filter(|pid| *pid > 1).collect())
}

/// The script whose output [`running`] parses.
fn query(processes: &[(usize, Process)]) -> String {
    let pids: Vec<String> = processes.iter().map(|(_, process)| process.id.pid.to_string()).collect();
    format!(
        r#"{}{PROCESS_FUNCTIONS}for d in /proc/[0-9]*; do
  p=${{d#/proc/}}
  stat_fields "$p" || continue
  set -- $f
  case " {} " in *" $4 "*) ;; *) continue ;; esac
  echo "process $s"
  m=$(tr '\0' '\n' <"$d/environ" 2>/dev/null | grep '^{}=' | head -n 1)
  [ -z "$m" ] || echo "mark $p ${{m#*=}}"
done"#,
        ProcessId::ABOUT,
        pids.join(" "),
        process::SUPERVISOR,
    )
}

fn running(text: &str, processes: &[(usize, Process)]) -> Result<Running, HostError> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    let (actual, boot_id, pid_namespace) = (value("node "), value("boot "), value("pidns "));
    if boot_id.is_empty() {
        return Err(HostError::NoProc);
    }
    if let Some(node) = processes.iter().find_map(|(_, p)| p.node.as_ref().filter(|node| *node != actual)) {
        let (actual, node) = (actual.to_string(), node.clone());
        return Err(HostError::WrongHost { actual, node });
    }
    let mut found: Vec<RemoteProcess> = Vec::new();
    let mut marks: Vec<(u32, Mark)> = Vec::new();
    for line in text.lines() {
        if let Some(stat) = line.strip_prefix("process ") {
            found.extend(RemoteProcess::of(stat, text));
        } else if let Some(mark) = line.strip_prefix("mark ") {
            let read = |(pid, mark): (&str, &str)| Some((pid.parse().ok()?, Mark::parse(mark)?));
            marks.extend(mark.split_once(' ').and_then(read));
        }
    }
    let mut running = Vec::new();
    for (at, (_, process)) in processes.iter().enumerate() {
        let id = &process.id;
        let unseen = |why: Unseen| Err(HostError::Unseen { pid: id.pid, why });
        if id.boot_id.is_empty() && found.iter().any(|found| found.id.pid == id.pid) {
            return unseen(Unseen::OldRecord);
        }
        if id.boot_id != boot_id {
            continue; // It was started before the host's last boot.
        }
        if id.pid_namespace != pid_namespace {
            return unseen(Unseen::OtherNamespace);
        }
        let is_itself = |found: &&RemoteProcess| found.id.pid == id.pid && found.id.ticks == id.ticks;
        if let Some(itself) = found.iter().find(is_itself) {
            running.push((at, itself.clone()));
            continue;
        }
        // Its replacement supervisor, or otherwise the processes that it supervised.
        let of_it: Vec<&(u32, Mark)> = marks.iter().filter(|(_, mark)| mark.is_of(id)).collect();
        let has_another = of_it.iter().any(|(_, mark)| mark.is_supervisor);
        let is_left = |pid: u32| of_it.iter().any(|(p, mark)| *p == pid && mark.is_supervisor == has_another);
        let left = found.iter().filter(|found| is_left(found.id.pid));
        running.extend(left.map(|found| (at, found.clone())));
    }
    Ok(running)
}

impl RemoteProcess {
    fn of(stat: &str, about: &str) -> Option<RemoteProcess> {
        let id = ProcessId::from_script(about, stat)?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let session = fields.get(3)?.parse().ok()?;
        Some(RemoteProcess { id, session })
    }

    /// `pid:ticks`
    fn target(&self) -> String {
        format!("{}:{}", self.id.pid, self.id.ticks.unwrap_or_default())
    }
}

/// `pid:ticks`, each once.
fn targets(running: &Running) -> String {
    let mut all: Vec<String> = running.iter().map(|(_, found)| found.target()).collect();
    all.sort();
    all.dedup();
    all.join(" ")
}

/// Their private directories. Rejects other paths, which another user may have written into the state file.
fn directories(processes: &[(usize, Process)]) -> Vec<String> {
    let is_ours = |path: &Path| {
        let text = path.to_string_lossy();
        let id = text.rsplit_once(PRIVATE).map(|(_, id)| id.to_string());
        path.is_absolute() && !text.contains("/../") && id.is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let named = processes.iter().filter_map(|(_, process)| process.directory.as_deref());
    let mut all: Vec<String> = named
        .filter(|path| is_ours(path))
        .map(|path| quoted(path.to_string_lossy()))
        .collect();
    all.sort();
    all.dedup();
    all
}

fn end_script(targets: &str, sessions: &str, directories: &[String], grace: Duration) -> String {
    let mut script = format!(
        r#"{PROCESS_FUNCTIONS}
left() {{ l=; for x in {targets}; do is_same "$x" && l="$l ${{x%:*}}"; done; [ -n "$l" ]; }}
a=0; k=0
for x in {targets}; do is_same "$x" && kill -TERM "${{x%:*}}" 2>/dev/null && a=$((a+1)); done
i=0; while left && [ $i -lt {} ]; do sleep 0.1; i=$((i+1)); done
for x in {targets}; do is_same "$x" && kill -KILL "${{x%:*}}" 2>/dev/null && k=$((k+1)); done
i=0; while left && [ $i -lt {KILL_TIMEOUT_DS} ]; do sleep 0.1; i=$((i+1)); done
# A replacement supervisor may appear only after the previous one has ended.
i=0; n=1; while [ $n -gt 0 ] && [ $i -lt {KILL_TIMEOUT_DS} ]; do
  n=0
  for d in /proc/[0-9]*; do
    stat_fields "${{d#/proc/}}" || continue
    set -- $f
    case " {sessions} " in *" $4 "*) ;; *) continue ;; esac
    case $1 in Z|X) ;; *) n=$((n+1)); kill -KILL "${{d#/proc/}}" 2>/dev/null && k=$((k+1)) ;; esac
  done
  [ $n -eq 0 ] || sleep 0.1
  i=$((i+1))
done
left
echo "terminated $a"
echo "killed $k"
echo "left $l""#,
        grace.as_millis() / 100,
    );
    for directory in directories {
        script.push_str(&format!(
            "\n[ -n \"$l\" ] || {{ rm -rf -- {directory}; rmdir -- \"$(dirname -- {directory})\" 2>/dev/null; }}"
        ));
    }
    script
}

fn count(text: &str, word: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pid: u32, ticks: u64) -> ProcessId {
        ProcessId {
            pid,
            host: "n".into(),
            ticks: Some(ticks),
            boot_id: "b".into(),
            pid_namespace: "pid:[1]".into(),
        }
    }

    fn recorded(pid: u32, ticks: u64, directory: Option<&str>) -> (usize, Process) {
        let process = Process {
            id: id(pid, ticks),
            node: Some("n".into()),
            directory: directory.map(Into::into),
            ..Process::default()
        };
        (0, process)
    }

    fn stat(pid: u32, session: u32, ticks: u32) -> String {
        format!("{pid} (a b) S 1 {session} {session} 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 1 0 {ticks} 99 98")
    }

    #[test]
    fn only_processes_with_the_recorded_identity_are_ours() {
        let text = format!(
            "node n\nboot b\npidns pid:[1]\nprocess {}\nprocess {}\nmark 8 9 2000\nprocess {}\nmark 11 10 5\nprocess {}\nmark 14 12 3000\n\
             process {}\nmark 15 12 3000 supervisor\n",
            stat(7, 7, 1000),
            stat(8, 9, 3000),
            stat(11, 10, 4000),
            stat(14, 12, 4500),
            stat(15, 12, 5000),
        );
        // The first one itself; what the second one supervised; the third one's id is reused; the fourth one's supervisor was replaced.
        let recorded_at = [(7, 1000), (9, 2000), (10, 900), (12, 3000)];
        let processes = recorded_at.map(|(pid, ticks)| recorded(pid, ticks, None));
        let found = running(&text, &processes).unwrap();
        assert_eq!(
            found.iter().map(|(at, f)| (*at, f.id.pid)).collect::<Vec<_>>(),
            [(0, 7), (1, 8), (3, 15)]
        );
        assert_eq!(targets(&found), "15:5000 7:1000 8:3000");
        assert!(running(&text, &[recorded(7, 500, None)]).unwrap().is_empty());
        assert!(running(&text.replace("boot b", "boot c"), &processes).unwrap().is_empty());
        let unseen = |process: (usize, Process)| matches!(running(&text, &[process]), Err(HostError::Unseen { pid: 7, .. }));
        let (at, mut in_a_container) = recorded(7, 1000, None);
        in_a_container.id.pid_namespace = "pid:[2]".into();
        let old = Process {
            id: serde_json::from_str(r#"{"pid": 7, "started": 1010.0}"#).unwrap(),
            ..Process::default()
        };
        assert!(unseen((at, in_a_container)) && unseen((at, old)));
        assert!(matches!(running("node m\nboot b\n", &processes), Err(HostError::WrongHost { .. })));
        assert!(matches!(running("node n\nboot \n", &processes), Err(HostError::NoProc)));
    }

    #[test]
    fn only_private_directories_are_removed() {
        let good = "/home/ada/.pcluster/profile_0123456789abcdef0123456789abcdef";
        for (directory, removed) in [(good, 1), ("/home/ada", 0), ("/home/ada/.pcluster/profile_x", 0), ("x", 0)] {
            assert_eq!(
                directories(&[recorded(1, 1, Some(directory)), recorded(2, 1, Some(directory))]).len(),
                removed
            );
        }
    }

    #[test]
    fn the_script_ends_a_process_and_no_other() {
        let run = |script: &str| {
            let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mut ours = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let line = std::fs::read_to_string(format!("/proc/{}/stat", ours.id())).unwrap();
        let found = RemoteProcess::of(line.trim(), "boot b").unwrap();
        let other = format!("{}:{}", found.id.pid, found.id.ticks.unwrap() + 1);
        assert_eq!(
            run(&end_script(&other, "", &[], Duration::from_secs(1))),
            "terminated 0\nkilled 0\nleft \n"
        );
        assert_eq!(ours.try_wait().unwrap(), None);
        let exact = found.target();
        assert_eq!(
            run(&end_script(&exact, "", &[], Duration::from_secs(5))),
            "terminated 1\nkilled 0\nleft \n"
        );
        ours.wait().unwrap();
    }
}
