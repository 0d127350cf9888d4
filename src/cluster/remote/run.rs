//! Runs pcluster commands on another host with its own pcluster, so that the same code runs locally and remotely.
use super::error::RemoteError;
use crate::cluster::{ClusterError, StartProgress};
use crate::model::shell::quoted;
use crate::ssh::probe::Host;
use crate::ssh::{Output, Ssh, shell};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The timeout for an interrupted command to undo its work.
const ENDS: Duration = Duration::from_secs(40);
/// The timeout of sending a signal.
const SIGNAL: Duration = Duration::from_secs(30);
/// The prefix of the line that reports the process id, for the signal sent on Ctrl-C.
const PID: &str = "pcluster-process ";

/// A line of stderr of `start --json-progress`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProgressLine {
    pub progress: StartProgress,
}

/// A line that a remote pcluster printed on stderr.
pub(crate) enum Line<'a> {
    Progress(StartProgress),
    /// Of the error that ended it: see [`failure`].
    Error,
    Text(&'a str),
}

impl Line<'_> {
    pub(crate) fn of(text: &str) -> Line<'_> {
        match serde_json::from_str::<ProgressLine>(text) {
            Ok(line) => Line::Progress(line.progress),
            Err(_) if begins_error(text) || text.starts_with("hint:") => Line::Error,
            Err(_) => Line::Text(text),
        }
    }
}

fn begins_error(line: &str) -> bool {
    line.starts_with("error:")
}

/// How a remote command ended.
#[derive(Debug)]
pub(crate) enum RemoteEnd {
    /// With any exit code.
    Exited(Output),
    /// It was interrupted by Ctrl-C.
    Interrupted,
}

/// Connects, and probes the host.
pub(crate) async fn reach(destination: &str) -> Result<(Ssh, Host), ClusterError> {
    let ssh = Ssh::connect_to(destination).await?;
    let host = Host::probe(&ssh, &Default::default()).await?;
    Ok((ssh, host))
}

/// Runs `program words…` in the user's login shell, so that a site's commands are found. Each line of its stderr
/// is passed to `line`.
pub(crate) async fn pcluster(
    ssh: &Ssh,
    host: &Host,
    program: &str,
    words: &[String],
    line: &mut impl FnMut(Line),
) -> Result<RemoteEnd, ClusterError> {
    let command: Vec<String> = std::iter::once(program)
        .chain(words.iter().map(String::as_str))
        .map(quoted)
        .collect();
    let script = format!("{}; echo {PID}$$ >&2; exec {}", shell::begin(), command.join(" "));
    let login_shell = host.shell.rsplit('/').next().unwrap_or_default();
    let running = match login_shell {
        // The shells that support `-l -c`.
        "bash" | "zsh" | "ksh" | "dash" | "sh" => ssh.spawn(&[&host.shell, "-l", "-c", &script]).await?,
        _ => ssh.spawn(&["sh", "-c", &script]).await?,
    };
    let (sender, mut pids) = tokio::sync::mpsc::channel(1);
    let mut begun = false;
    let mut take = move |text: &str| match text.strip_prefix(PID) {
        Some(pid) => {
            begun = true;
            drop(sender.try_send(pid.trim().to_string()));
        }
        None if begun => line(Line::of(text)),
        None => {}
    };
    let finish = running.finish(b"", &mut take);
    tokio::pin!(finish);
    let Ok(mut interrupts) = signal(SignalKind::interrupt()) else {
        return Ok(RemoteEnd::Exited(without_greeting(finish.await?)));
    };
    tokio::select! {
        output = &mut finish => return Ok(RemoteEnd::Exited(without_greeting(output?))),
        _ = interrupts.recv() => {}
    }
    if let Ok(pid) = pids.try_recv()
        && pid.bytes().all(|b| b.is_ascii_digit())
    {
        ssh.run(&["kill", "-INT", &pid], b"", SIGNAL).await?;
        let _ = tokio::time::timeout(ENDS, &mut finish).await;
    }
    Ok(RemoteEnd::Interrupted)
}

fn without_greeting(mut output: Output) -> Output {
    output.stdout = shell::after_begin(output.stdout);
    output
}

/// The error that a failed command has printed.
pub(crate) fn failure(ssh: &Ssh, command: &str, output: &Output) -> ClusterError {
    let text = String::from_utf8_lossy(&output.stderr);
    let reported: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with(PID) && !l.starts_with('{'))
        .map(str::trim_end)
        .collect();
    let from = reported
        .iter()
        .position(|line| begins_error(line))
        .unwrap_or(reported.len().saturating_sub(8));
    RemoteError::Failed {
        to: ssh.destination().to_string(),
        command: command.into(),
        code: output.code,
        output: reported[from..].join("\n"),
    }
    .into()
}
