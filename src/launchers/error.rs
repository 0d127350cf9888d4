//! Errors when something cannot be started or stopped.
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("there is no launcher {name:?}; there are: {}", super::known().join(", "))]
    UnknownLauncher { name: String },
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot open the log file {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("the directory to start in, {}, is not there", path.display())]
    NoDirectory { path: PathBuf },
    #[error("cannot run the Python interpreter {python}: {why}")]
    NoPython { python: String, why: String },
    #[error("the Python interpreter {python} was interrupted")]
    Interrupted { python: String },
    #[error("the Python interpreter {python} is version {version}; 3.8 is the oldest that will do")]
    OldPython { python: String, version: String },
    #[error("an ipengine needs the package ipyparallel, which {python} cannot import: {why}")]
    NoIpyparallel { python: String, why: String },
    #[error("engine.ipengine is not a command: {command:?}")]
    BadCommand { command: String },
    #[error("cannot send signal {signal} to process {pid}: {why}")]
    Signal { signal: i32, pid: u32, why: String },
    #[error("cannot read the template {}: {source}", path.display())]
    ReadTemplate { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Template(#[from] super::batch::TemplateError),
    #[error("cannot write the job's script {}: {source}", path.display())]
    Script { path: PathBuf, source: io::Error },
    #[error("{system} did not take the job: {said}\n  the command: {command}\n  the script: {}", script.display())]
    Submit {
        system: &'static str,
        said: String,
        command: String,
        script: PathBuf,
        hint: Option<String>,
    },
    #[error("cannot {doing} of {system}: {said}\n  the command: {command}")]
    Batch {
        system: &'static str,
        doing: &'static str,
        command: String,
        said: String,
    },
    #[error("jobs of {system} are still there{}", list(jobs))]
    JobsLeft {
        system: &'static str,
        /// A description of each job, and why it is still there.
        jobs: Vec<String>,
    },
    #[error("the launcher ssh has no hosts")]
    NoHosts,
    #[error("{wanted} engines were asked for, and the hosts are for {places}")]
    TooFewPlaces { wanted: u32, places: u32 },
    #[error("the launcher {launcher} starts engines only")]
    OnlyEngines { launcher: &'static str },
    #[error("{started} of {wanted} engines could be started over ssh; they are ended again{}", list(troubles))]
    Hosts { started: u32, wanted: u32, troubles: Vec<String> },
    #[error("cannot {doing} all engines{}", list(troubles))]
    OverSsh { doing: &'static str, troubles: Vec<String> },
    #[error("cannot work over ssh: {why}")]
    NoRuntime { why: String },
    #[error("process {pid} is still there after SIGKILL")]
    Unkillable { pid: u32 },
}

impl LaunchError {
    /// A suggested action.
    pub fn hint(&self) -> Option<String> {
        match self {
            LaunchError::UnknownLauncher { .. } => {
                Some("leave --launcher out, or set launcher.engines in the profile's pcluster.yaml".into())
            }
            LaunchError::NoPython { .. } | LaunchError::OldPython { .. } => {
                Some("name one with --python or engine.python in the profile's pcluster.yaml, or activate a virtual environment".into())
            }
            LaunchError::NoIpyparallel { python, .. } => Some(format!(
                "install it there: {python} -m pip install ipyparallel; or name another interpreter with --python"
            )),
            LaunchError::NoHosts => {
                Some("--host node1:4 --host user@node2:8, or launchers.ssh.hosts in the profile's pcluster.yaml".into())
            }
            LaunchError::TooFewPlaces { .. } => Some("ask for fewer with -n, or give a host a larger number".into()),
            LaunchError::OnlyEngines { .. } => {
                Some("the controller runs where `pcluster start` does; `pcluster start --on HOST` starts all of it there".into())
            }
            LaunchError::Hosts { .. } => Some("--min-engines N goes on with those that start".into()),
            LaunchError::OverSsh { .. } => Some("try again when the hosts answer: what runs there is on record".into()),
            LaunchError::Template(error) => error.hint(),
            LaunchError::Submit { hint, .. } => hint.clone(),
            LaunchError::Batch { .. } => Some("try again when the batch system answers; nothing was forgotten".into()),
            LaunchError::JobsLeft { .. } => Some("try again; `pcluster clean --force` forgets them".into()),
            LaunchError::Unkillable { .. } => Some("it waits for a device or a network file system; it will end when that answers".into()),
            _ => None,
        }
    }
}

fn list(troubles: &[String]) -> String {
    troubles
        .iter()
        .map(|trouble| format!("\n  {}", trouble.replace('\n', "\n  ")))
        .collect()
}
