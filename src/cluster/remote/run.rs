//! pcluster's commands run on the other host, through the pcluster there: what it does here it does there by the same code.
use super::error::RemoteError;
use crate::cluster::{ClusterError, StartProgress};
use crate::ssh::probe::Host;
use crate::ssh::{Destination, Output, Ssh, quoted, shell};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a command that is told to end may take to undo what it has begun.
const ENDS: Duration = Duration::from_secs(40);
/// How long a signal may take.
const SIGNAL: Duration = Duration::from_secs(30);
/// Names the process, for the signal that Ctrl-C is.
const PID: &str = "pcluster-process ";

/// A line of stderr of `start --tell-progress`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub progress: StartProgress,
}

/// How a command there ended.
#[derive(Debug)]
pub enum Ended {
    /// With any exit code.
    ByItself(Output),
    /// It was told to end, by Ctrl-C.
    Interrupted,
}

/// Connected, and told who answers.
pub async fn reach(destination: &str) -> Result<(Ssh, Host), ClusterError> {
    let ssh = Ssh::connect(&Destination::parse(destination)?).await?;
    let host = Host::probe(&ssh, &Default::default()).await?;
    Ok((ssh, host))
}

/// Runs `program words…` as in a login shell of the user's, so that a site's commands are found. Each line of its stderr
/// goes to `line`.
pub async fn pcluster(ssh: &Ssh, host: &Host, program: &str, words: &[String], line: &mut impl FnMut(&str)) -> Result<Ended, ClusterError> {
    let command: Vec<String> = std::iter::once(program)
        .chain(words.iter().map(String::as_str))
        .map(quoted)
        .collect();
    let script = format!("{}; echo {PID}$$ >&2; exec {}", shell::begin(), command.join(" "));
    let login_shell = host.shell.rsplit('/').next().unwrap_or_default();
    let running = match login_shell {
        // Those of which `-l -c` means what it says.
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
        None if begun => line(text),
        None => {}
    };
    let finish = running.finish(b"", &mut take);
    tokio::pin!(finish);
    let Ok(mut interrupts) = signal(SignalKind::interrupt()) else {
        return Ok(Ended::ByItself(without_greeting(finish.await?)));
    };
    tokio::select! {
        output = &mut finish => return Ok(Ended::ByItself(without_greeting(output?))),
        _ = interrupts.recv() => {}
    }
    if let Ok(pid) = pids.try_recv()
        && pid.bytes().all(|b| b.is_ascii_digit())
    {
        ssh.run(&["kill", "-INT", &pid], b"", SIGNAL).await?;
        let _ = tokio::time::timeout(ENDS, &mut finish).await;
    }
    Ok(Ended::Interrupted)
}

fn without_greeting(mut output: Output) -> Output {
    output.stdout = shell::after_begin(output.stdout);
    output
}

/// The error that a failed command has told.
pub fn failure(ssh: &Ssh, command: &str, output: &Output) -> ClusterError {
    let text = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with(PID) && !l.starts_with('{'))
        .map(str::trim_end)
        .collect();
    let from = said
        .iter()
        .position(|l| l.starts_with("error:"))
        .unwrap_or(said.len().saturating_sub(8));
    RemoteError::Failed {
        to: ssh.destination().to_string(),
        command: command.into(),
        code: output.code,
        said: said[from..].join("\n"),
    }
    .into()
}
