//! A launch becomes a job request.
use super::JobKind;
use super::request::{JobRequest, job_name};
use crate::launchers::{ControllerLaunch, EnginesLaunch, LaunchError, engine, python};
use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use crate::profile::config::resources::{MpiConfig, Resources, StartMode};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The engines of one launch as one submission. `unique` tells it from all others of this user: a few letters and digits. Looks at the
/// environment for the interpreter that engines are to use: on a node there is no active virtual environment.
pub fn engines(launch: &EnginesLaunch, resources: &Resources, mpi: &MpiConfig, unique: &str) -> Result<JobRequest, LaunchError> {
    let mut launch = launch.clone();
    if launch.python.is_none() {
        let found = python::resolve(None);
        launch.python = Path::new(&found).is_absolute().then_some(found);
    }
    let (program, arguments) = match resources.start {
        StartMode::Mpiexec => {
            // A rank that was started a second time could not join the others. An engine's id is its rank.
            let (program, mut arguments) = engine::lone_engine_command(&launch)?;
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
    // What `mpiexec` makes of other signals is its own affair.
    request.hears_warnings = launch.kind == EngineKind::Pcluster && resources.start != StartMode::Mpiexec;
    request.mpiexec = std::iter::once(&mpi.command).chain(&mpi.arguments).cloned().collect();
    Ok(request)
}

/// The controller as a job. It asks for what engines are given, but for what only tasks can use; a template that was named is theirs.
pub fn controller(launch: &ControllerLaunch, resources: &Resources, unique: &str) -> JobRequest {
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
        hears_warnings: false,
        after_term_s: None,
        after_user_s: None,
        mpiexec: Vec::new(),
        counted_by_job: Vec::new(),
    }
}

fn argv(program: PathBuf, arguments: Vec<OsString>) -> Vec<String> {
    let words = std::iter::once(program.into_os_string()).chain(arguments);
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}
