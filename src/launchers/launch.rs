//! The parameters of a launch.
use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use std::path::PathBuf;

/// The parameters for starting a controller.
#[derive(Clone, Debug)]
pub(crate) struct ControllerLaunch {
    /// The pcluster program.
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// The `--set` options of the command line.
    pub settings: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

/// The parameters for starting engines.
#[derive(Clone, Debug)]
pub(crate) struct EnginesLaunch {
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub settings: Vec<(String, String)>,
    pub kind: EngineKind,
    pub n: u32,
    /// The number of the first engine, for the name of its log file.
    pub first: u32,
    /// The interpreter, unless the engine selects it.
    pub python: Option<String>,
    /// The command of an `ipengine`, unless it is `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
    /// A few letters and digits that no other launch of this user has: finds its engines again if the caller dies
    /// before it has recorded them ([`super::Launcher::find_engines`]).
    pub tag: Option<String>,
}
