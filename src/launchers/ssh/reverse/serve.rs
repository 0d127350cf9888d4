//! The tunnel's own process: makes the ssh connection, finds the controller, asks for the ports there; and does so again whenever
//! the connection breaks, this host wakes up, or the controller is at other ports. It ends when its state file is gone.
use super::target;
use super::{Phase, ReverseError, ReverseState};
use crate::connection::ConnectionFile;
use crate::profile::ProfileDir;
use crate::ssh::backoff::{Backoff, MAX_DELAY, SuspendDetector, TICK};
use crate::ssh::relay::Relay;
use crate::ssh::shell::PROCESS_FUNCTIONS;
use crate::ssh::{Destination, Ssh, SshError, control_dir, quoted};
use crate::sys::process::ProcessId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often one looks where the controller is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long an ssh process that has closed its connections may take to be gone.
const ENDS: Duration = Duration::from_millis(100);
/// An engine that has not connected again for so long after the tunnel was up has gone with its connection.
const COMES_BACK: Duration = Duration::from_secs(10);
/// How long the other host may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// Without a controller's file for so long, there is nothing to lead to any more: its engines have given up, too.
const ORPHANED: Duration = Duration::from_secs(15 * 60);
/// How many ports are tried where the first ones are taken.
const TRIES: u32 = 20;
/// Ports from here up, below those that systems give out by themselves: nobody gets them by chance while the tunnel is away.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

struct Tunnel {
    file: PathBuf,
    state: ReverseState,
    relay: Relay,
    /// How often it was up.
    ups: u64,
    /// When the controller's file was last there.
    seen: Instant,
}

/// Runs until SIGTERM or SIGINT, or until its state file is gone. `first`: what goes wrong before it leads anywhere ends it, for who
/// is waiting for it to be told.
pub async fn serve(file: &Path, first: bool) -> Result<(), ReverseError> {
    let (Ok(mut terminated), Ok(mut interrupted)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return Err(ReverseError::Internal("no signals can be received".into()));
    };
    let Some(mut state) = ReverseState::read(file)? else {
        return Ok(());
    };
    if let Some(path) = state.place.take() {
        control_dir::clear(&path);
    }
    state.tunnel = Some(ProcessId::own());
    state.supervisor = ProcessId::supervisor();
    let mut tunnel = Tunnel {
        file: file.to_path_buf(),
        state,
        relay: Relay::default(),
        ups: 0,
        seen: Instant::now(),
    };
    tunnel.write();
    let ended = tokio::select! {
        ended = tunnel.run(first) => ended,
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    };
    if let Err(error) = &ended {
        tunnel.tell(Phase::Failed, Some(error));
    }
    ended
}

impl Tunnel {
    async fn run(&mut self, first: bool) -> Result<(), ReverseError> {
        let mut backoff = Backoff::default();
        while self.is_wanted() {
            let begun = Instant::now();
            let ups = self.ups;
            let error = match self.connection().await {
                Ok(()) => break,
                Err(error) if first && self.ups == 0 => return Err(error),
                Err(error) => error,
            };
            self.state.place = None;
            tracing::warn!("{error}");
            if matches!(error, ReverseError::Moved) {
                continue;
            }
            self.tell(Phase::Down, Some(&error));
            if self.ups > ups && begun.elapsed() > MAX_DELAY {
                backoff.reset();
            }
            // While one waits, too, the tunnel may be no longer wanted.
            tokio::select! {
                () = backoff.wait(error.may_pass()) => {}
                () = self.until_unwanted() => {}
            }
        }
        tracing::info!("no longer wanted");
        Ok(())
    }

    /// One ssh connection, from its beginning until it is lost.
    async fn connection(&mut self) -> Result<(), ReverseError> {
        let ssh = Ssh::connect(&Destination::parse(&self.state.to)?).await?;
        self.state.place = Some(ssh.control_dir().to_path_buf());
        self.write();
        let led = self.lead(&ssh).await;
        ssh.close().await;
        led
    }

    async fn lead(&mut self, ssh: &Ssh) -> Result<(), ReverseError> {
        self.end_session_before(ssh).await?;
        let file = self.engine_file()?;
        let address = target::find(&file, &self.state.channels).await?;
        let ports = target::ports(&file);
        let mut listening = Vec::new();
        self.relay.new_connection();
        for name in self.state.channels.clone() {
            let Some(port) = ports.get(&name) else {
                return Err(ReverseError::Internal(format!(
                    "the engines' connection file has no channel {name}"
                )));
            };
            let path = ssh.control_dir().join(&name);
            listening.push(self.relay.listen(&path, &address, *port).map_err(|e| ReverseError::State {
                doing: "listen at",
                path: path.clone(),
                why: e.to_string(),
            })?);
            self.forward(ssh, &name, &path).await?;
        }
        self.ups += 1;
        if self.ups > 1 {
            self.state.reconnects += 1;
        }
        tracing::info!("ports of {} lead to {address}: {:?}", self.state.to, self.state.ports);
        self.state.leads_to = Some(address);
        self.tell(Phase::Up, None);
        self.watch(ssh, &ports).await
    }

    /// After a cut the process that served the connection before may live on there, and hold the ports: it is ended. Notes the one
    /// that serves this connection.
    async fn end_session_before(&mut self, ssh: &Ssh) -> Result<(), ReverseError> {
        let before = self.state.session.take();
        let end = before.as_ref().map_or(String::new(), end_script);
        // `$PPID` is the process of sshd that serves this connection: it holds its forwards.
        let script = format!(
            "{}{PROCESS_FUNCTIONS}{end}start_ticks $PPID && echo \"session $s\"\n:",
            ProcessId::ABOUT
        );
        let text = ssh.ask(&script, ANSWERS).await?;
        if text.lines().any(|line| line == "ended") {
            tracing::info!("ended what was left of the connection before on {}", self.state.to);
        }
        // One that is the user's own is not ours to end.
        self.state.session = session(&text).filter(|_| !ssh.is_borrowed());
        Ok(())
    }

    /// The port that the engines know; at first one that is free.
    async fn forward(&mut self, ssh: &Ssh, name: &str, path: &Path) -> Result<(), ReverseError> {
        if let Some(known) = self.state.ports.get(name).copied() {
            return match ssh.forward_remote(known, path).await {
                Err(SshError::Forward { why, .. }) => Err(ReverseError::Taken {
                    to: self.state.to.clone(),
                    port: known,
                    why,
                }),
                done => Ok(done?),
            };
        }
        let mut tries = 0;
        loop {
            let there = any_port(uuid::Uuid::new_v4().as_u128());
            match ssh.forward_remote(there, path).await {
                Ok(()) => {
                    self.state.ports.insert(name.to_string(), there);
                    return Ok(());
                }
                Err(SshError::Forward { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Until the connection is lost, or the tunnel is no longer wanted.
    async fn watch(&mut self, ssh: &Ssh, ports: &BTreeMap<String, u16>) -> Result<(), ReverseError> {
        let (begun, mut looked) = (Instant::now(), Instant::now());
        let mut holds = true;
        loop {
            let detector = SuspendDetector::now();
            let ended = tokio::select! {
                () = tokio::time::sleep(TICK) => false,
                () = self.relay.far_side_ended() => true,
            };
            if ended {
                // An ssh process that is about to end has closed its connections first.
                tokio::time::sleep(ENDS).await;
            }
            if !self.is_wanted() {
                return Ok(());
            }
            ssh.check().await?;
            if ended {
                self.relay.confirm_alive();
            }
            if holds && begun.elapsed() > COMES_BACK {
                // Of the engines of before, those that there are have connected again.
                self.relay.release();
                holds = false;
            }
            if detector.suspended() {
                tracing::info!("this host has slept");
                ssh.run(&["true"], b"", ANSWERS).await?;
            }
            if looked.elapsed() < LOOK_EVERY {
                continue;
            }
            looked = Instant::now();
            match self.engine_file() {
                Ok(file) => {
                    self.seen = Instant::now();
                    if target::ports(&file) != *ports {
                        return Err(ReverseError::Moved);
                    }
                }
                Err(error) if self.seen.elapsed() > ORPHANED => {
                    tracing::warn!("{error}; for {} s there was no controller: this is the end", ORPHANED.as_secs());
                    return Ok(());
                }
                Err(_) => {}
            }
        }
    }

    fn engine_file(&self) -> Result<ConnectionFile, ReverseError> {
        let profile = ProfileDir::at(&self.state.profile);
        Ok(ConnectionFile::read(&profile.engine_file(&self.state.cluster_id))?)
    }

    fn is_wanted(&self) -> bool {
        // A file system that does not answer is no word.
        !matches!(self.file.try_exists(), Ok(false))
    }

    async fn until_unwanted(&self) {
        while self.is_wanted() {
            tokio::time::sleep(TICK).await;
        }
    }

    fn tell(&mut self, phase: Phase, error: Option<&ReverseError>) {
        if self.state.phase != phase {
            self.state.since = crate::sys::clock::unix_now();
        }
        self.state.phase = phase;
        self.state.problem = error.map(|error| match error {
            ReverseError::Ssh(error) => match error.hint() {
                Some(hint) => format!("{error}\n  {hint}"),
                None => error.to_string(),
            },
            other => other.to_string(),
        });
        self.write();
    }

    /// A file that was removed must not come back.
    fn write(&self) {
        if self.is_wanted()
            && let Err(error) = self.state.write(&self.file)
        {
            tracing::error!("{error}");
        }
    }
}

fn any_port(random: u128) -> u16 {
    PORTS.start + (random % u128::from(PORTS.end - PORTS.start)) as u16
}

fn end_script(before: &ProcessId) -> String {
    let (pid, ticks) = (before.pid, before.ticks.unwrap_or_default());
    format!(
        r#"if [ "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" = {} ] && [ {pid} != $PPID ] && is_same {pid}:{ticks} && kill -TERM {pid} 2>/dev/null; then
  i=0; while is_same {pid}:{ticks} && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
  echo ended
fi
"#,
        quoted(&before.boot_id)
    )
}

/// The process in `session PID (…) …`, of the host that says so.
fn session(text: &str) -> Option<ProcessId> {
    let stat = text.lines().find_map(|line| line.strip_prefix("session "))?;
    ProcessId::from_script(text, stat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_below_those_that_are_given_out() {
        for random in [0, 21_999, 22_000, u128::MAX] {
            assert!(PORTS.contains(&any_port(random)));
        }
    }

    #[test]
    fn the_process_of_the_connection_before_is_ended_and_no_other() {
        let run = |script: String| {
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mut left = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let said = run(format!(
            "{}{PROCESS_FUNCTIONS}start_ticks {} && echo \"session $s\"",
            ProcessId::ABOUT,
            left.id()
        ));
        let found = session(&said).unwrap();
        assert_eq!(found, ProcessId::of(left.id()));
        let other = ProcessId {
            ticks: found.ticks.map(|ticks| ticks + 1),
            ..found.clone()
        };
        let before_a_boot = ProcessId {
            boot_id: "4711".into(),
            ..found.clone()
        };
        assert_eq!(run(format!("{PROCESS_FUNCTIONS}{}", end_script(&before_a_boot))), "");
        assert_eq!(run(format!("{PROCESS_FUNCTIONS}{}", end_script(&other))), "");
        assert_eq!(left.try_wait().unwrap(), None);
        // The one that serves the script itself stays.
        let own = "start_ticks $PPID && p=$PPID && start_ticks $p && echo \"$t\"";
        assert_ne!(run(format!("{PROCESS_FUNCTIONS}{own}")), "");
        assert_eq!(run(format!("{PROCESS_FUNCTIONS}{}", end_script(&found))), "ended\n");
        left.wait().unwrap();
        assert_eq!(session("boot b\nsession 7 x; rm"), None);
    }
}
