//! Why something could not be started or stopped.
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
    #[error("process {pid} is still there after SIGKILL")]
    Unkillable { pid: u32 },
}

impl LaunchError {
    /// What to do next.
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
            LaunchError::Template(error) => error.hint(),
            LaunchError::Submit { hint, .. } => hint.clone(),
            LaunchError::Batch { .. } => Some("try again when the batch system answers; nothing was forgotten".into()),
            LaunchError::Unkillable { .. } => Some("it waits for a device or a network file system; it will end when that answers".into()),
            _ => None,
        }
    }
}
