//! `pcluster start --on`: runs `start` on a remote host, shows its progress, and connects to the new cluster.
use super::StartProgressBar;
use crate::cli::commands::connect::connect;
use crate::cli::commands::remote_exec::remote_arguments;
use crate::cli::output::counted;
use crate::cli::{CommandError, Context, ErrorKind};
use crate::cluster::remote::run::{self, Line, RemoteEnd};
use crate::cluster::remote::{ConnectOptions, RemoteError, install};
use crate::cluster::{ClusterError, StartProgress};
use std::sync::Mutex;

pub(super) fn start(destination: &str, may_install: bool, context: &Context) -> Result<(), CommandError> {
    let profile = context.profile_dir()?;
    if let Some(cluster) = crate::cluster::status(&profile, &context.cluster_id)
        && let crate::cluster::Condition::Running | crate::cluster::Condition::Connected = cluster.state
    {
        let error = format!("{} is already in use: {}", context.describe_cluster(), cluster.state);
        return Err(CommandError::refused(error).hint(format!(
            "run pcluster disconnect{0} or pcluster stop{0}, or choose another --profile or --cluster-id",
            context.options()
        )));
    }
    let mut words = remote_arguments(std::env::args().skip(1));
    words.push(format!("--profile={}", profile.name()));
    if !context.cluster_id.is_empty() {
        words.push(format!("--cluster-id={}", context.cluster_id));
    }
    words.extend(["--json".into(), "--json-progress".into()]);
    let bar = Mutex::new(StartProgressBar::new(context));
    let show = |progress| bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).show(progress);
    let ended = context.block_on(async {
        let (ssh, host) = run::reach(destination).await?;
        let worked = async {
            let installed = install::ensure(&ssh, &host, may_install).await?;
            if installed.copied {
                show(StartProgress::Note(format!(
                    "copied this pcluster to {} on {}",
                    installed.path, host.name
                )));
            }
            let mut line = |line: Line| match line {
                Line::Progress(progress) => show(progress),
                Line::Error | Line::Text("") => {}
                Line::Text(text) => show(StartProgress::Note(format!("{}: {text}", host.name))),
            };
            match run::pcluster(&ssh, &host, &installed.path, &words, &mut line).await? {
                RemoteEnd::Exited(output) if output.ok() => Ok(Some(output.stdout_text())),
                RemoteEnd::Exited(output) => Err(run::failure(&ssh, "start", &output)),
                RemoteEnd::Interrupted => Ok(None),
            }
        }
        .await;
        ssh.close().await;
        worked
    })?;
    drop(bar);
    let stdout = match ended {
        Ok(Some(stdout)) => stdout,
        Ok(None) => {
            let error = format!("interrupted; what was started on {destination} has been stopped");
            return Err(CommandError::new(ErrorKind::Interrupted, error));
        }
        Err(ClusterError::Remote(error @ RemoteError::Failed { .. })) => {
            let hint = format!("the hints apply to {destination}: ssh {destination}");
            return Err(CommandError::from(ClusterError::Remote(error)).hint(hint));
        }
        Err(error) => return Err(error.into()),
    };
    let started: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_default();
    let engines = started["engines"].as_u64().unwrap_or_default();
    context.note(format!("started on {destination}: a controller and {}", counted(engines, "engine")));
    let options = ConnectOptions {
        remote_profile: Some(profile.name().to_string()),
        remote_cluster_id: Some(context.cluster_id.clone()),
        profile,
        cluster_id: context.cluster_id.clone(),
        destination: destination.into(),
        remote_ipython_dir: None,
        program: None,
    };
    connect(options, context).map_err(|e| {
        e.hint(format!(
            "the cluster is running on {destination}; connect later: pcluster connect {destination}{}",
            context.options()
        ))
    })
}
