//! Converts a launch into a job request.
use super::JobKind;
use super::request::{JobRequest, job_name};
use crate::launchers::{ControllerLaunch, EnginesLaunch, LaunchError, engine, python};
use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use crate::profile::config::resources::{MpiConfig, Resources, StartMode};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Converts an engine launch into one submission. `unique` (a few letters and digits) distinguishes
/// it from all others of this user. Resolves the interpreter from this process's environment, since
/// no virtual environment is active on a node.
pub(crate) fn engines(launch: &EnginesLaunch, resources: &Resources, mpi: &MpiConfig, unique: &str) -> Result<JobRequest, LaunchError> {
    let mut launch = launch.clone();
    if launch.python.is_none() {
        let found = python::resolve(None);
        launch.python = Path::new(&found).is_absolute().then_some(found);
    }
    let (program, arguments) = match resources.start {
        StartMode::Mpiexec => {
            // A restarted rank could not rejoin the others. An engine's id is its rank.
            let (program, mut arguments) = engine::unsupervised_engine_command(&launch)?;
            arguments.push("--mpi".into());
            (program, arguments)
        }
        StartMode::Array | StartMode::Srun => engine::engine_command(&launch)?,
    };
    let mut request = request(JobKind::Engines, &launch.profile, &launch.cluster_id, resources, unique);
    request.n = launch.n.max(1);
    request.engines_per_job = resources.engines_per_job.unwrap_or(1).max(1);
    request.argv = argv(program, arguments);
    request.cwd = launch.cwd;
    // `mpiexec` defines how it handles other signals.
    request.handles_sigusr2 = launch.kind == EngineKind::Pcluster && resources.start != StartMode::Mpiexec;
    request.mpiexec = std::iter::once(&mpi.command).chain(&mpi.arguments).cloned().collect();
    Ok(request)
}

/// Converts a controller launch into a job. It requests the same resources as the engines, except
/// those that only tasks use. A named template applies to the engines only.
pub(crate) fn controller(launch: &ControllerLaunch, resources: &Resources, unique: &str) -> JobRequest {
    let resources = &Resources {
        gpus: None,
        nodes: None,
        template: None,
        ..resources.clone()
    };
    let mut request = request(JobKind::Controller, &launch.profile, &launch.cluster_id, resources, unique);
    let (program, arguments) = engine::controller_command(launch);
    request.argv = argv(program, arguments);
    request.cwd = launch.cwd.clone();
    request
}

fn request(kind: JobKind, profile: &ProfileDir, cluster_id: &str, resources: &Resources, unique: &str) -> JobRequest {
    let name = job_name(profile.name(), cluster_id, unique);
    JobRequest {
        kind,
        script: profile.batch_dir().join(format!("{name}.sh")),
        name,
        profile: profile.name().into(),
        cluster_id: cluster_id.into(),
        n: 1,
        engines_per_job: 1,
        argv: Vec::new(),
        cwd: PathBuf::new(),
        log_dir: profile.log_dir(),
        log_stem: match cluster_id {
            "" => kind.word().into(),
            id => format!("{}-{id}", kind.word()),
        },
        env: Vec::new(),
        resources: resources.clone(),
        handles_sigusr2: false,
        after_term_s: None,
        after_user_s: None,
        mpiexec: Vec::new(),
        per_job_resources: Vec::new(),
    }
}

fn argv(program: PathBuf, arguments: Vec<OsString>) -> Vec<String> {
    let words = std::iter::once(program.into_os_string()).chain(arguments);
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}
