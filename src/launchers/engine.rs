//! The command line of an engine or a controller, shared by all launchers.
use super::{ControllerLaunch, EnginesLaunch, LaunchError, python};
use crate::profile::config::EngineKind;
use std::ffi::OsString;
use std::path::PathBuf;

/// The program and arguments of the controller.
pub(crate) fn controller_command(launch: &ControllerLaunch) -> (PathBuf, Vec<OsString>) {
    let mut arguments: Vec<OsString> = vec![
        "controller".into(),
        "--supervise".into(),
        "--profile-dir".into(),
        launch.profile.path().into(),
    ];
    arguments.extend(["--cluster-id".into(), launch.cluster_id.clone().into()]);
    arguments.extend(settings_arguments(&launch.settings));
    if let Some(level) = &launch.log_level {
        arguments.extend(["--log-level".into(), level.into()]);
    }
    (launch.program.clone(), arguments)
}

pub(crate) fn settings_arguments(settings: &[(String, String)]) -> impl Iterator<Item = OsString> {
    settings
        .iter()
        .flat_map(|(key, value)| ["--set".into(), format!("{key}={value}").into()])
}

/// The program and arguments of one engine, with its supervisor.
pub(crate) fn engine_command(launch: &EnginesLaunch) -> Result<(PathBuf, Vec<OsString>), LaunchError> {
    let (program, mut arguments) = unsupervised_engine_command(launch)?;
    match launch.kind {
        EngineKind::Pcluster => arguments.insert(1, "--supervise".into()),
        EngineKind::Ipengine => {
            let ours = ["engine".into(), "--supervise".into(), "--".into(), program.into_os_string()];
            arguments.splice(0..0, ours);
            return Ok((launch.program.clone(), arguments));
        }
    }
    Ok((program, arguments))
}

/// The program and arguments of one engine, without a supervisor.
pub(crate) fn unsupervised_engine_command(launch: &EnginesLaunch) -> Result<(PathBuf, Vec<OsString>), LaunchError> {
    let file = launch.profile.engine_file(&launch.cluster_id);
    if launch.kind == EngineKind::Ipengine {
        let (program, mut arguments) = ipengine(launch)?;
        for (option, value) in [("--profile-dir=", launch.profile.path()), ("--file=", &file)] {
            let mut argument = OsString::from(option);
            argument.push(value);
            arguments.push(argument);
        }
        if !launch.cluster_id.is_empty() {
            arguments.push(format!("--cluster-id={}", launch.cluster_id).into());
        }
        return Ok((program, arguments));
    }
    let mut arguments: Vec<OsString> = vec!["engine".into(), "--file".into(), file.into()];
    arguments.extend(["--profile-dir".into(), launch.profile.path().into()]);
    if let Some(python) = &launch.python {
        arguments.extend(["--python".into(), python.into()]);
    }
    if let Some(level) = &launch.log_level {
        arguments.extend(["--log-level".into(), level.into()]);
    }
    arguments.extend(settings_arguments(&launch.settings));
    Ok((launch.program.clone(), arguments))
}

/// The words of `engine.ipengine`, or the interpreter with ipyparallel's module.
fn ipengine(launch: &EnginesLaunch) -> Result<(PathBuf, Vec<OsString>), LaunchError> {
    if let Some(command) = &launch.ipengine {
        let mut words = command.split_whitespace();
        let program = words.next().ok_or_else(|| LaunchError::BadCommand { command: command.clone() })?;
        return Ok((program.into(), words.map(OsString::from).collect()));
    }
    let python = python::resolve(launch.python.as_deref());
    Ok((python.into(), vec!["-m".into(), "ipyparallel.engine".into()]))
}
