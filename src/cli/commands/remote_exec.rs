//! Commands about the processes of a cluster, given for one that a tunnel leads to: they are run on the other host, by the
//! pcluster there. All others work through the tunnel as they are.
use super::Command;
use crate::cli::{CommandError, Context, ErrorKind, Exit, output};
use crate::cluster::ClusterError;
use crate::cluster::remote::run::{self, Ended};
use crate::cluster::remote::{self, install};
use crate::ssh::tunnel::TunnelState;

/// Options that mean this host, with whether a value follows.
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

/// Runs the command there, if it is one of those and its cluster is there.
pub fn instead(command: &Command, context: &Context) -> Result<Option<Exit>, CommandError> {
    let (name, ends) = match command {
        Command::Stop(args) if !args.is_all() => ("stop", true),
        Command::Restart(_) => ("restart", false),
        Command::Logs(_) => ("logs", false),
        Command::Engines(args) if args.changes_them() => ("engines", false),
        _ => return Ok(None),
    };
    let Ok(profile) = context.profile_dir() else { return Ok(None) };
    let Some(tunnel) = remote::running(&profile, &context.cluster_id) else {
        return Ok(None);
    };
    let mut words = words_for_there(std::env::args().skip(1));
    words.extend(names(&tunnel, &profile, context));
    if context.json {
        words.push("--json".into());
    }
    context.say_more(format!("on {}: pcluster {}", tunnel.destination, words.join(" ")));
    let done = context.block_on(run_there(&tunnel.destination, name, &words, context))??;
    let Some(stdout) = done else {
        return Err(CommandError::new(
            ErrorKind::Interrupted,
            format!("interrupted, as was the command on {}", tunnel.destination),
        ));
    };
    output::print(&stdout)?;
    if ends {
        context.block_on(remote::disconnect(&profile, &context.cluster_id))??;
        context.say(format!("disconnected from {}", tunnel.destination));
    }
    Ok(Some(Exit::Fine))
}

/// The options that name the cluster there.
pub fn names(tunnel: &TunnelState, profile: &crate::profile::ProfileDir, context: &Context) -> Vec<String> {
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

/// stdout; none if it was interrupted.
async fn run_there(destination: &str, name: &str, words: &[String], context: &Context) -> Result<Option<String>, CommandError> {
    let (ssh, host) = run::reach(destination).await?;
    let installed = install::ensure(&ssh, &host, false).await?;
    let mut line = |text: &str| {
        if !text.starts_with("error:") && !text.starts_with("hint:") {
            context.say(text);
        }
    };
    let ended = run::pcluster(&ssh, &host, &installed.path, words, &mut line).await;
    let failed: Option<ClusterError> = match &ended {
        Ok(Ended::ByItself(output)) if !output.ok() => Some(run::failure(&ssh, name, output)),
        _ => None,
    };
    ssh.close().await;
    match (ended?, failed) {
        (_, Some(error)) => Err(error.into()),
        (Ended::ByItself(output), None) => Ok(Some(output.stdout_text())),
        (Ended::Interrupted, None) => Ok(None),
    }
}

/// A command line without what means this host.
pub fn words_for_there(words: impl IntoIterator<Item = String>) -> Vec<String> {
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
    fn what_means_this_host_stays_here() {
        let line = "start --on me@login --profile=hpc -n 4 --cluster-id night --json --set engine.cwd=/x --launcher slurm --no-install";
        let words = words_for_there(line.split(' ').map(str::to_string));
        assert_eq!(words.join(" "), "start -n 4 --set engine.cwd=/x --launcher slurm");
    }
}
