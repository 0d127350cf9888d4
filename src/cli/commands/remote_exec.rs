//! Runs commands that manage the processes of a connected remote cluster on its host, with the pcluster installed there. All
//! other commands work through the tunnel.
use super::Command;
use crate::cli::{CommandError, Context, ErrorKind, Exit, output};
use crate::cluster::ClusterError;
use crate::cluster::remote::run::{self, Line, RemoteEnd};
use crate::cluster::remote::{self, install};
use crate::ssh::tunnel::TunnelState;

/// Options that apply to the local host, and whether they take a value.
const OURS: &[(&str, bool)] = &[
    ("--profile", true),
    ("--cluster-id", true),
    ("--ipython-dir", true),
    ("--color", true),
    ("--on", true),
    ("--remote-profile", true),
    ("--remote-cluster-id", true),
    ("--remote-ipython-dir", true),
    ("--no-install", false),
    ("--json", false),
    ("--all", false),
];

/// Runs the command on the remote host, if it manages processes and its cluster is remote.
pub(crate) fn run_instead(command: &Command, context: &Context) -> Result<Option<Exit>, CommandError> {
    let (name, ends) = match command {
        Command::Stop(args) if !args.is_all() => ("stop", true),
        Command::Restart(_) => ("restart", false),
        Command::Logs(_) => ("logs", false),
        // Only that host can ask the batch system.
        Command::Explain(args) if args.is_about_job() => ("explain", false),
        Command::Engines(args) if args.starts_processes() => ("engines", false),
        _ => return Ok(None),
    };
    let Ok(profile) = context.profile_dir() else { return Ok(None) };
    let Some(tunnel) = remote::running(&profile, &context.cluster_id) else {
        return Ok(None);
    };
    let mut words = remote_arguments(std::env::args().skip(1));
    words.extend(names(&tunnel, &profile, context));
    if context.json {
        words.push("--json".into());
    }
    context.note_verbose(format!("on {}: pcluster {}", tunnel.destination, words.join(" ")));
    let done = context.block_on(run_remote(&tunnel.destination, name, &words, context))??;
    let Some(stdout) = done else {
        return Err(CommandError::new(
            ErrorKind::Interrupted,
            format!("interrupted, together with the command on {}", tunnel.destination),
        ));
    };
    output::print(&stdout)?;
    if ends {
        context.block_on(remote::disconnect(&profile, &context.cluster_id))??;
        context.note(format!("disconnected from {}", tunnel.destination));
    }
    Ok(Some(Exit::Fine))
}

/// The options that select the remote cluster.
pub(crate) fn names(tunnel: &TunnelState, profile: &crate::profile::ProfileDir, context: &Context) -> Vec<String> {
    let (remote_profile, id) = tunnel.remote_names();
    let remote_profile = remote_profile.unwrap_or(profile.name());
    let id = id.unwrap_or(&context.cluster_id);
    let mut words = vec![format!("--profile={remote_profile}")];
    if !id.is_empty() {
        words.push(format!("--cluster-id={id}"));
    }
    if let Some(dir) = &tunnel.remote_ipython_dir {
        words.push(format!("--ipython-dir={dir}"));
    }
    words
}

/// Returns stdout, or None if interrupted.
async fn run_remote(destination: &str, name: &str, words: &[String], context: &Context) -> Result<Option<String>, CommandError> {
    let (ssh, host) = run::reach(destination).await?;
    let installed = install::ensure(&ssh, &host, false).await?;
    let mut line = |line: Line| {
        if let Line::Text(text) = line {
            context.note(text);
        }
    };
    let ended = run::pcluster(&ssh, &host, &installed.path, words, &mut line).await;
    let failed: Option<ClusterError> = match &ended {
        Ok(RemoteEnd::Exited(output)) if !output.ok() => Some(run::failure(&ssh, name, output)),
        _ => None,
    };
    ssh.close().await;
    match (ended?, failed) {
        (_, Some(error)) => Err(error.into()),
        (RemoteEnd::Exited(output), None) => Ok(Some(output.stdout_text())),
        (RemoteEnd::Interrupted, None) => Ok(None),
    }
}

/// A command line without the options that apply to the local host.
pub(crate) fn remote_arguments(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            kept.push(word);
            kept.extend(words);
            break;
        }
        let name = word.split('=').next().unwrap_or_default();
        match OURS.iter().find(|(option, _)| *option == name) {
            Some((_, true)) if !word.contains('=') => drop(words.next()),
            Some(_) => {}
            None => kept.push(word),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_host_run_locally() {
        let line = "start --on me@login --profile=hpc -n 4 --cluster-id night --json --set engine.cwd=/x --launcher slurm --no-install";
        let words = remote_arguments(line.split(' ').map(str::to_string));
        assert_eq!(words.join(" "), "start -n 4 --set engine.cwd=/x --launcher slurm");
    }
}
