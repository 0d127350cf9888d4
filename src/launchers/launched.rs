//! The result of one launch: local processes, remote processes, or jobs of a batch system. Plain
//! data in the cluster's state file, so that other processes can manage it.
use super::EnginesLaunch;
use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use crate::sys::process::ProcessId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// One launch. Its members are its processes, followed by the elements of its jobs. Members are
/// identified by their index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Launched {
    pub launcher: String,
    /// The host that launched it. Its processes run on this host unless they name another one.
    pub host: String,
    pub processes: Vec<Process>,
    /// Jobs of a batch system, one per submission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<BatchJob>,
    /// Its engines re-read the connection file when the controller is unreachable, to find its new
    /// address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
    /// How to restart its engines, if they may be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// Set if the walltime monitor decided on this launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic: Option<ElasticLaunch>,
    /// The command that waits for these engines and withdraws them if they do not connect. While it
    /// runs, no other command manages them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited_by: Option<ProcessId>,
    /// What failed to start, and why, when enough has started. Reported once, not stored.
    #[serde(skip)]
    pub problem: Vec<String>,
    /// Further messages for the user. Reported once, not stored.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// Fields written by a later version.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The decision that a launch carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ElasticLaunch {
    /// Its number.
    pub launch: u64,
    pub shape: String,
}

/// Everything needed to start the same engines again, except the profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub program: PathBuf,
    pub settings: Vec<(String, String)>,
    pub kind: EngineKind,
    pub python: Option<String>,
    pub ipengine: Option<String>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
    /// Maximum number of replacements per engine.
    pub max_restarts: u32,
}

impl Recipe {
    pub(crate) fn of(launch: &EnginesLaunch, max_restarts: u32) -> Recipe {
        Recipe {
            program: launch.program.clone(),
            settings: launch.settings.clone(),
            kind: launch.kind,
            python: launch.python.clone(),
            ipengine: launch.ipengine.clone(),
            cwd: launch.cwd.clone(),
            log_level: launch.log_level.clone(),
            max_restarts,
        }
    }

    /// Launches `n` more engines; `first` is the number of the first one.
    pub(crate) fn launch(&self, profile: &ProfileDir, cluster_id: &str, n: u32, first: u32) -> EnginesLaunch {
        EnginesLaunch {
            program: self.program.clone(),
            profile: profile.clone(),
            cluster_id: cluster_id.into(),
            settings: self.settings.clone(),
            kind: self.kind,
            n,
            first,
            python: self.python.clone(),
            ipengine: self.ipengine.clone(),
            cwd: self.cwd.clone(),
            log_level: self.log_level.clone(),
            tag: None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Process {
    #[serde(flatten)]
    pub id: ProcessId,
    pub log: PathBuf,
    /// The offset in bytes at which this process's output starts in the log.
    #[serde(default)]
    pub log_from: u64,
    /// The host it runs on, if not the launch's host; in the spelling that its launcher uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// The host's own name. If several hosts share a DNS name, the name may resolve to another of
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// A directory on that host that belongs to this launch and is removed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The state file of the reverse tunnel through which it reaches the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<PathBuf>,
    /// Requested to leave; it may still be finishing a task.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leaving: bool,
    /// The number of engines if not 1: an `mpiexec` represents all engines that it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<u32>,
}

/// A job of a batch system: a single job, or an array.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BatchJob {
    /// The id that the batch system's commands accept.
    pub id: String,
    /// Unique among this user's jobs: finds a submission whose acknowledgement was lost.
    pub name: String,
    /// Set if the system has several dialects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dialect: String,
    /// The submitted script.
    pub script: PathBuf,
    /// Whether it is an array. Otherwise its only element is 1.
    pub array: bool,
    /// The number of submitted elements; they are numbered from 1.
    pub size: u32,
    /// The elements that have not been given up.
    pub elements: Vec<u32>,
    /// The elements that were requested to leave; they may still be finishing a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<u32>,
    /// The number of engines per element; the last element may have fewer.
    #[serde(default = "one")]
    pub engines_per_element: u32,
    /// The number of engines in all elements; 0 for a controller's job.
    pub engines: u32,
    /// The number of the first engine, for the name of its log file.
    #[serde(default)]
    pub first_engine: u32,
    /// How often its engines were replaced before: 0 for a job submitted by a command.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replaces: u32,
    /// The output of an element outside its engines' logs; `{}` stands for its number.
    #[serde(default)]
    pub log: String,
    /// Seconds since 1970.
    pub submitted: f64,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn one() -> u32 {
    1
}

/// One process, or one element of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// `process 4242`, `job 18.7`.
    pub name: String,
    /// The number of engines, for launches of engines.
    pub engines: u32,
    pub log: PathBuf,
    /// The offset at which its output starts in the log.
    pub log_from: u64,
    /// It was requested to leave.
    pub leaving: bool,
}

/// The stage of a member's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// In the batch system's queue: waiting, held, requeued.
    Queued,
    Running,
    /// Suspended by the batch system; it may resume.
    Suspended,
    Ended,
    /// The stage cannot be determined, from this host or at all. Never treated as ended.
    Unknown,
}

/// What is known about a member beyond its stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    None,
    /// A job that its batch system has not reported yet.
    Submitted,
    /// The batch system's own term (`PENDING`), or a process's exit status (`exit code 3`).
    Reported(String),
}

/// The state of a member, with details beyond the stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub stage: Stage,
    pub detail: Detail,
    /// The reason in the batch system's own terms (`Resources`); may be empty.
    pub reason: String,
    /// How a job ended, if its system reports it.
    pub outcome: Option<JobOutcome>,
}

/// How a batch system's job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobOutcome {
    /// It exited by itself, with success or failure.
    Itself,
    Cancelled,
    TimedOut,
    NodeFailed,
    OutOfMemory,
    Preempted,
}

impl MemberState {
    /// `word`: may be empty.
    pub(crate) fn new(stage: Stage, word: impl Into<String>, reason: impl Into<String>) -> MemberState {
        let word = word.into();
        MemberState {
            stage,
            detail: if word.is_empty() { Detail::None } else { Detail::Reported(word) },
            reason: reason.into(),
            outcome: None,
        }
    }
    pub(crate) fn running() -> MemberState {
        MemberState::new(Stage::Running, "", "")
    }
    pub(crate) fn ended(how: impl Into<String>) -> MemberState {
        MemberState::new(Stage::Ended, how, "")
    }
    pub(crate) fn unknown(why: impl Into<String>) -> MemberState {
        MemberState::new(Stage::Unknown, "", why)
    }
    /// Submitted, but not reported by the batch system yet.
    pub(crate) fn submitted() -> MemberState {
        MemberState {
            detail: Detail::Submitted,
            ..MemberState::new(Stage::Queued, "", "")
        }
    }
    /// May be empty.
    pub(crate) fn word(&self) -> &str {
        match &self.detail {
            Detail::None => "",
            Detail::Submitted => "submitted",
            Detail::Reported(word) => word,
        }
    }
    /// `running`, `queued`, or the system's own term.
    pub(crate) fn describe(&self) -> &str {
        match (self.stage, self.word()) {
            (Stage::Running, "") => "running",
            (Stage::Ended, "") => "ended",
            (_, word) => word,
        }
    }
    pub(crate) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }
    /// Known to exist: running, queued or suspended.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Queued | Stage::Running | Stage::Suspended)
    }
}

impl Launched {
    pub(crate) fn new(launcher: &str, host: String) -> Launched {
        Launched {
            launcher: launcher.into(),
            host,
            ..Launched::default()
        }
    }

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        self.processes.len() + self.jobs.iter().map(|job| job.elements.len()).sum::<usize>()
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        let processes = self.processes.iter().map(|process| Member {
            name: match &process.on {
                Some(host) => format!("process {} on {host}", process.id.pid),
                None => format!("process {}", process.id.pid),
            },
            engines: process.engines.unwrap_or(1),
            log: process.log.clone(),
            log_from: process.log_from,
            leaving: process.leaving,
        });
        processes.chain(self.jobs.iter().flat_map(BatchJob::members)).collect()
    }

    /// The number of engines, excluding those that were requested to leave.
    pub(crate) fn engines(&self) -> usize {
        let staying = self.members().into_iter().filter(|member| !member.leaving);
        staying.map(|member| member.engines as usize).sum()
    }

    /// Records that this member was asked to leave.
    pub(crate) fn mark_leaving(&mut self, index: usize) {
        if let Some(process) = self.processes.get_mut(index) {
            process.leaving = true;
            return;
        }
        let mut at = index - self.processes.len();
        for job in &mut self.jobs {
            if let Some(element) = job.elements.get(at).copied() {
                if !job.leaving.contains(&element) {
                    job.leaving.push(element);
                }
                return;
            }
            at -= job.elements.len();
        }
    }

    /// The state files of its reverse tunnels, without duplicates.
    pub(crate) fn tunnels(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for file in self.processes.iter().filter_map(|process| process.tunnel.as_ref()) {
            if !all.contains(file) {
                all.push(file.clone());
            }
        }
        all
    }

    /// Keeps only the members for which `wanted` returns true, by index.
    pub(crate) fn only(&self, wanted: impl Fn(usize) -> bool) -> Launched {
        let mut part = self.clone();
        let mut index = 0;
        let mut next = || {
            index += 1;
            wanted(index - 1)
        };
        part.processes.retain(|_| next());
        for job in &mut part.jobs {
            job.elements.retain(|_| next());
        }
        part.jobs.retain(|job| !job.elements.is_empty());
        part
    }
}

impl BatchJob {
    /// Whether no element has been given up.
    pub(crate) fn is_whole(&self) -> bool {
        self.elements.len() == self.size as usize
    }

    /// Whether the job that an engine reports ([`crate::model::engine::EngineFacts::job`]) is this element.
    pub(crate) fn is_reported_as(&self, reported: &str, element: u32) -> bool {
        let (id, of_array) = match reported.rsplit_once('.') {
            Some((id, last)) if last.bytes().all(|b| b.is_ascii_digit()) && !last.is_empty() => (id, last.parse().ok()),
            _ => (reported, None),
        };
        // `19[3].server` and `19[].server` are the same job.
        let number = |id: &str| id.chars().take_while(char::is_ascii_digit).collect::<String>();
        !reported.is_empty() && number(id) == number(&self.id) && of_array.is_none_or(|e: u32| e == element)
    }

    /// `18.7`; just the job's id if it is not an array.
    pub(crate) fn element_name(&self, element: u32) -> String {
        match self.array {
            true => format!("{}.{element}", self.id),
            false => self.id.clone(),
        }
    }

    /// The number of engines in this element.
    pub(crate) fn engines_of(&self, element: u32) -> u32 {
        let before = (element.max(1) - 1).saturating_mul(self.engines_per_element);
        self.engines.saturating_sub(before).min(self.engines_per_element)
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        self.elements.iter().map(|element| Member {
            name: format!("job {}", self.element_name(*element)),
            engines: self.engines_of(*element),
            log: self.log.replace("{}", &element.to_string()).into(),
            log_from: 0,
            leaving: self.leaving.contains(element),
        })
    }
}

/// `3 queued: Resources; 1 held`: the number of engines in each state other than running.
pub(crate) fn summarize(members: &[Member], states: &[MemberState]) -> String {
    let mut groups: Vec<(Stage, String, &str, u32)> = Vec::new();
    for (member, state) in members.iter().zip(states) {
        if state.stage == Stage::Running || state.detail == Detail::Submitted {
            continue;
        }
        let word = match state.describe() {
            "" => "unknown",
            word => word,
        };
        let reason = state.reason.as_str();
        match groups.iter_mut().find(|(_, w, r, _)| w == word && *r == reason) {
            Some((.., count)) => *count += member.engines.max(1),
            None => groups.push((state.stage, word.to_string(), reason, member.engines.max(1))),
        }
    }
    groups.sort_by_key(|(stage, ..)| *stage);
    let words = groups.iter().map(|(_, word, reason, count)| match *reason {
        "" => format!("{count} {word}"),
        reason => format!("{count} {word}: {reason}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// The actions that were needed to end members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StopReport {
    /// Received SIGTERM.
    pub terminated: usize,
    /// Received SIGKILL afterwards.
    pub killed: usize,
    /// Elements of jobs that the batch system was asked to cancel.
    #[serde(default)]
    pub cancelled: usize,
    /// Members known to remain, each with the reason, for display.
    #[serde(default)]
    pub left: Vec<String>,
    /// Members that cannot be observed from this host and may remain, each with the reason.
    #[serde(default)]
    pub unseen: Vec<String>,
}

impl std::ops::AddAssign for StopReport {
    fn add_assign(&mut self, other: StopReport) {
        self.terminated += other.terminated;
        self.killed += other.killed;
        self.cancelled += other.cancelled;
        self.left.extend(other.left);
        self.unseen.extend(other.unseen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array() -> BatchJob {
        BatchJob {
            id: "18".into(),
            array: true,
            size: 4,
            elements: vec![1, 2, 3, 4],
            engines_per_element: 4,
            engines: 15,
            log: "/l/18-{}.log".into(),
            ..BatchJob::default()
        }
    }

    #[test]
    fn members_are_processes_followed_by_elements() {
        let mut launched = Launched::new("x", "h".into());
        launched.processes.push(Process {
            id: ProcessId {
                pid: 7,
                ..ProcessId::default()
            },
            on: Some("node1".into()),
            ..Process::default()
        });
        launched.jobs.push(array());
        let names: Vec<String> = launched.members().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["process 7 on node1", "job 18.1", "job 18.2", "job 18.3", "job 18.4"]);
        assert_eq!(launched.members()[4].engines, 3, "the last element has the remaining engines");
        assert_eq!(launched.members()[2].log, PathBuf::from("/l/18-2.log"));
        assert_eq!((launched.len(), launched.engines()), (5, 16));
        let part = launched.only(|index| index == 2 || index == 4);
        assert_eq!((part.processes.len(), &part.jobs[0].elements), (0, &vec![2, 4]));
        assert!(!part.jobs[0].is_whole());
        assert_eq!(part.engines(), 7);
        assert!(launched.only(|_| false).is_empty());
    }

    #[test]
    fn states_are_counted_by_word_and_reason() {
        let launched = Launched {
            jobs: vec![array()],
            ..Launched::default()
        };
        let states = [
            MemberState::running(),
            MemberState::new(Stage::Queued, "queued", "Resources"),
            MemberState::new(Stage::Queued, "queued", "Resources"),
            MemberState::unknown("no answer"),
        ];
        assert_eq!(summarize(&launched.members(), &states), "8 queued: Resources; 3 unknown: no answer");
        assert_eq!(summarize(&launched.members(), &vec![MemberState::running(); 4]), "");
    }

    #[test]
    fn an_old_launch_is_parsed_and_unknown_fields_are_preserved() {
        let text = r#"{"launcher":"local","host":"h","processes":[{"pid":4,"started":1.0,"log":"/l"}],"colour":"blue"}"#;
        let launched: Launched = serde_json::from_str(text).unwrap();
        assert_eq!((launched.processes[0].id.pid, launched.jobs.len()), (4, 0));
        let again = serde_json::to_value(&launched).unwrap();
        assert_eq!(again["colour"], "blue");
        assert!(again.get("jobs").is_none(), "an older pcluster does not expect it");
    }
}
