//! Errors when something cannot be started or stopped.
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("unknown launcher {name:?} (available: {})", known.join(", "))]
    UnknownLauncher { name: String, known: Vec<&'static str> },
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot open the log file {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("the working directory {} does not exist", path.display())]
    NoDirectory { path: PathBuf },
    #[error("cannot run the Python interpreter {python}: {why}")]
    NoPython { python: String, why: String },
    #[error("the Python interpreter {python} was interrupted")]
    Interrupted { python: String },
    #[error("the Python interpreter {python} is version {version}; pcluster requires 3.8 or later")]
    OldPython { python: String, version: String },
    #[error("an ipengine needs the package ipyparallel, which {python} cannot import: {why}")]
    NoIpyparallel { python: String, why: String },
    #[error("engine.ipengine is not a valid command: {command:?}")]
    BadCommand { command: String },
    #[error("cannot send signal {signal} to process {pid}: {why}")]
    Signal { signal: i32, pid: u32, why: String },
    #[error("cannot read the template {}: {source}", path.display())]
    ReadTemplate { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Template(#[from] super::batch::TemplateError),
    #[error("cannot write the job's script {}: {source}", path.display())]
    Script { path: PathBuf, source: io::Error },
    #[error("submitting the job to {system} failed: {message}\n  command: {command}\n  script: {}", script.display())]
    Submit {
        system: &'static str,
        message: String,
        command: String,
        script: PathBuf,
        hint: Option<String>,
        /// The system may have accepted it.
        is_uncertain: bool,
    },
    #[error("{system}: cannot {action}: {message}\n  command: {command}")]
    Batch {
        system: &'static str,
        action: &'static str,
        command: String,
        message: String,
    },
    #[error("jobs of {system} still exist{}", list(jobs))]
    JobsRemain {
        system: &'static str,
        /// A description of each job, and why it is still there.
        jobs: Vec<String>,
    },
    #[error("the launcher ssh has no hosts")]
    NoHosts,
    #[error("{wanted} engines were requested, but the hosts have {slots} slots")]
    NotEnoughSlots { wanted: u32, slots: u32 },
    #[error("{engines} engines do not fit on this host, at most {fits}: {limit}")]
    NoRoom { engines: u32, fits: u64, limit: String },
    #[error("the launcher {launcher} cannot start a controller")]
    OnlyEngines { launcher: &'static str },
    #[error("only {started} of {wanted} engines started over ssh, and were stopped again{}", list(problems))]
    Hosts { started: u32, wanted: u32, problems: Vec<String> },
    #[error("cannot {doing} all engines{}", list(problems))]
    OverSsh { doing: &'static str, problems: Vec<String> },
    #[error("cannot set up ssh: {why}")]
    NoRuntime { why: String },
    #[error("process {pid} still exists after SIGKILL")]
    Unkillable { pid: u32 },
}

/// Why the log of an engine on another host is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LogError {
    #[error("{host}: {why}")]
    Host { host: String, why: String },
    #[error("{host} has not answered for {seconds} s")]
    Silent { host: String, seconds: u64 },
    #[error("{0}")]
    Launcher(String),
}

impl LaunchError {
    /// A suggested action.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            LaunchError::UnknownLauncher { .. } => Some("omit --launcher, or set launcher.engines in the profile's pcluster.yaml".into()),
            LaunchError::NoPython { .. } | LaunchError::OldPython { .. } => {
                Some("set --python, or engine.python in the profile's pcluster.yaml, or activate a virtual environment".into())
            }
            LaunchError::NoIpyparallel { python, .. } => Some(format!(
                "install it: {python} -m pip install ipyparallel; or choose another interpreter with --python"
            )),
            LaunchError::NoHosts => {
                Some("pass --host node1:4 --host user@node2:8, or set launchers.ssh.hosts in the profile's pcluster.yaml".into())
            }
            LaunchError::NotEnoughSlots { .. } => Some("reduce -n, or increase the number of a host's slots".into()),
            LaunchError::NoRoom { fits, .. } => Some(format!(
                "pass at most -n {fits}, or raise the limit; --set launcher.check_limits=false skips this check"
            )),
            LaunchError::OnlyEngines { .. } => Some(
                "`pcluster start` runs the controller on this host; `pcluster start --on HOST` starts the whole cluster on HOST".into(),
            ),
            LaunchError::Hosts { .. } => Some("pass --min-engines N to continue with fewer engines".into()),
            LaunchError::OverSsh { .. } => Some("try again when the hosts are reachable; their engines stay recorded".into()),
            LaunchError::Template(error) => error.hint(),
            LaunchError::Submit { hint, .. } => hint.clone(),
            LaunchError::Batch { .. } => Some("try again when the batch system answers; the jobs stay recorded".into()),
            LaunchError::JobsRemain { .. } => Some("try again, or remove their records with `pcluster clean --force`".into()),
            LaunchError::Unkillable { .. } => {
                Some("the process waits for a device or a network file system, and ends when that responds".into())
            }
            _ => None,
        }
    }
}

fn list(problems: &[String]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {}", problem.replace('\n', "\n  ")))
        .collect()
}
