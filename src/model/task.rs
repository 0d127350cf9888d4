//! A task's states and outcomes. The table of allowed transitions is
//! `controller::core::transition`.
use super::open_enum::open_enum;
use super::output::{Output, Stream};
use super::pickled::Pickled;
use super::{EngineId, MapId, TaskId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use std::str::FromStr;

/// A task's state. Its name is the same in the database and in the output;
/// `docs/reference/task-states.md` explains them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Its dependencies are not finished.
    Waiting,
    /// Runs as soon as an engine is free.
    Ready,
    /// Sent to an engine, not started.
    Assigned,
    /// Running on the engine.
    Running,
    /// Finished; see the outcome.
    Ok,
    Error,
    /// Cancelled, or will never run because a dependency failed.
    Aborted,
    Timeout,
    /// Its engine or worker died too often.
    Lost,
}

impl TaskState {
    pub const ALL: [TaskState; 9] = [
        TaskState::Waiting,
        TaskState::Ready,
        TaskState::Assigned,
        TaskState::Running,
        TaskState::Ok,
        TaskState::Error,
        TaskState::Aborted,
        TaskState::Timeout,
        TaskState::Lost,
    ];
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Ready => "ready",
            TaskState::Assigned => "assigned",
            TaskState::Running => "running",
            TaskState::Ok => "ok",
            TaskState::Error => "error",
            TaskState::Aborted => "aborted",
            TaskState::Timeout => "timeout",
            TaskState::Lost => "lost",
        }
    }
    pub fn is_done(self) -> bool {
        self >= TaskState::Ok
    }
    /// Done, but not `ok`.
    pub fn is_failed(self) -> bool {
        self > TaskState::Ok
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TaskState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        TaskState::ALL.into_iter().find(|state| state.as_str() == s).ok_or_else(|| {
            let names: Vec<_> = TaskState::ALL.iter().map(|s| s.as_str()).collect();
            format!("{s:?} is not a task state (one of {})", names.join(" "))
        })
    }
}

/// The error of the task that represents the missing inputs of a map whose client died while
/// sending them.
pub(crate) const INPUTS_MISSING: &str = "InputsMissing";

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct TaskError {
    /// `ValueError`; for commands `ExitCode` or `Signal`; pcluster's own: `TaskTimeout`,
    /// `TaskCancelled`, `WorkerDied`, `EngineLost`.
    pub ename: String,
    pub evalue: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub traceback: String,
}

open_enum! {
    /// Why an attempt failed.
    pub enum Cause {
        /// Its function or command.
        Error => "error",
        /// Its worker died.
        Crash => "crash",
        /// It ran longer than its limit.
        Timeout => "timeout",
        Cancelled => "cancelled",
        /// It used more memory than its limit, and its engine killed it.
        MemoryLimit => "out_of_memory_limit",
        /// The kernel killed it because the memory of its control group was used up.
        MemoryCgroup => "out_of_memory_cgroup",
        /// The batch system ended the engine's job because it used too much memory.
        MemoryJob => "out_of_memory_job",
        /// Its engine left, or was lost.
        EngineLost => "engine_lost",
    }
}

impl Cause {
    /// It had too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Cause::MemoryLimit | Cause::MemoryCgroup | Cause::MemoryJob)
    }
}

/// What one attempt asks for in place of its map's request: after a failure for which `--retry-mem` or `--retry-time` gives more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ask {
    /// Its memory, reserved and enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    /// Its time limit, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
}

impl Ask {
    pub fn is_default(&self) -> bool {
        *self == Ask::default()
    }
    pub fn limit_s(&self) -> Option<f64> {
        self.limit_ms.map(|ms| ms as f64 / 1000.0)
    }
}

/// An engine's report of one attempt that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// One of the done states.
    pub status: TaskState,
    /// The value as JSON text, unchanged since the worker wrote it; with `pickled` only a rendering
    /// of it. None for failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// A value that JSON cannot represent exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickled: Option<Pickled>,
    /// For a long value: the number of bytes that arrived as [`Stream::Value`]. They are the
    /// content of `pickled` if that is set, else of `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_size: Option<u64>,
    /// The part that was not recorded before the end; it follows the recorded part.
    #[serde(default, skip_serializing_if = "Output::is_empty")]
    pub stdout: Output,
    #[serde(default, skip_serializing_if = "Output::is_empty")]
    pub stderr: Output,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// The worker or engine died because of it (or while running it): counts against `max_crashes`,
    /// not against `retries`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub crashed: bool,
    /// Why it failed, where the status does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The most memory that its processes had at a time, in bytes, as far as measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    pub started: UnixTime,
    pub ended: UnixTime,
}

impl Outcome {
    /// Why it failed; None if it did not.
    pub fn cause(&self) -> Option<Cause> {
        let by_status = match self.status {
            TaskState::Error if self.crashed => Cause::Crash,
            TaskState::Error => Cause::Error,
            TaskState::Timeout => Cause::Timeout,
            TaskState::Aborted => Cause::Cancelled,
            TaskState::Lost => Cause::Crash,
            _ => return None,
        };
        Some(self.cause.clone().unwrap_or(by_status))
    }

    /// An outcome with only a status and an error.
    pub fn failure(status: TaskState, ename: &str, evalue: impl Into<String>, started: UnixTime, ended: UnixTime) -> Outcome {
        Outcome {
            status,
            value: None,
            pickled: None,
            value_size: None,
            stdout: Output::default(),
            stderr: Output::default(),
            exit_code: None,
            error: Some(TaskError {
                ename: ename.into(),
                evalue: evalue.into(),
                traceback: String::new(),
            }),
            crashed: false,
            cause: None,
            peak_memory: None,
            started,
            ended,
        }
    }

    /// Stdout and stderr.
    pub fn outputs(&mut self) -> [(Stream, &mut Output); 2] {
        [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)]
    }

    /// The number of bytes included here.
    pub fn bytes(&self) -> usize {
        let error = self
            .error
            .as_ref()
            .map_or(0, |e| e.ename.len() + e.evalue.len() + e.traceback.len());
        let value = self.value.as_ref().map_or(0, |v| v.get().len());
        let pickled = self.pickled.as_ref().map_or(0, |p| p.python_type.len() + p.bytes.len());
        error + value + pickled + self.stdout.bytes.len() + self.stderr.bytes.len()
    }
}

/// A task as displayed by `pcluster results`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRow {
    pub task: TaskId,
    pub state: TaskState,
    /// The input as JSON text.
    pub input: Option<Box<RawValue>>,
    /// As in [`Outcome`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pickled: Option<Pickled>,
    /// As in [`Outcome`]: the bytes of a long value must be fetched separately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_size: Option<u64>,
    /// The output displayed by an ipyparallel client's execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repr: Option<String>,
    /// All of a short output, the beginning of a long one.
    #[serde(default)]
    pub stdout: Output,
    #[serde(default)]
    pub stderr: Output,
    pub exit_code: Option<i32>,
    pub error: Option<TaskError>,
    pub engine: Option<EngineId>,
    pub host: Option<String>,
    /// How often it was started.
    pub attempts: u32,
    /// The number of its current run; every retry and every resubmission increments it.
    #[serde(default)]
    pub run: u32,
    pub submitted: UnixTime,
    pub started: Option<UnixTime>,
    pub completed: Option<UnixTime>,
    /// Seconds from started to completed.
    pub duration: Option<f64>,
    /// The protocol's id, for tasks of ipyparallel clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    pub label: Option<String>,
    /// As in [`Outcome`], of the last attempt that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What its current or last attempt asked for in place of its map's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

impl TaskRow {
    /// Stdout and stderr.
    pub fn outputs(&mut self) -> [(Stream, &mut Output); 2] {
        [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)]
    }

    /// Inserts a long value that was fetched.
    pub fn set_value(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        match &mut self.pickled {
            Some(pickled) => pickled.bytes = bytes.into(),
            None => {
                let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
                self.value = Some(RawValue::from_string(text).map_err(|error| error.to_string())?);
            }
        }
        self.value_size = None;
        Ok(())
    }
}

/// A superseded attempt of a task: it failed and was repeated, or the task was resubmitted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptRow {
    pub run: u32,
    pub engine: Option<EngineId>,
    pub host: Option<String>,
    /// What it asked for in place of its map's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Not flattened: `flatten` cannot read a value that is kept as its text.
    pub outcome: Outcome,
}

/// The number of a map's tasks in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Counts {
    pub total: u64,
    pub ok: u64,
    pub error: u64,
    pub aborted: u64,
    pub timeout: u64,
    pub lost: u64,
    pub running: u64,
    pub assigned: u64,
}

impl Counts {
    pub fn failed(&self) -> u64 {
        self.error + self.aborted + self.timeout + self.lost
    }
    pub fn done(&self) -> u64 {
        self.ok + self.failed()
    }
    pub fn pending(&self) -> u64 {
        self.total.saturating_sub(self.done())
    }
    /// The counter of a done state.
    pub fn done_counter(&mut self, state: TaskState) -> Option<&mut u64> {
        match state {
            TaskState::Ok => Some(&mut self.ok),
            TaskState::Error => Some(&mut self.error),
            TaskState::Aborted => Some(&mut self.aborted),
            TaskState::Timeout => Some(&mut self.timeout),
            TaskState::Lost => Some(&mut self.lost),
            _ => None,
        }
    }
}

/// A map as displayed by `pcluster results`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapRow {
    pub map: MapId,
    /// `call`, `command`, …: [`super::definition::Work::kind`].
    pub kind: String,
    pub name: String,
    pub label: Option<String>,
    pub submitted: UnixTime,
    pub completed: Option<UnixTime>,
    /// All inputs have arrived: `counts.total` will not grow.
    pub closed: bool,
    #[serde(flatten)]
    pub counts: Counts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for state in TaskState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.as_str()));
        }
        assert!("done".parse::<TaskState>().unwrap_err().contains("waiting"));
    }
}
