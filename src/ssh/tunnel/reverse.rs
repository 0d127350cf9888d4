//! Reverse tunnel: ports of the other host's loopback are forwarded to a controller that this host can reach.
use super::daemon::{Check, LinkEvent, Tunnel};
use super::error::TunnelError;
use super::state::{LeadsTo, TunnelState};
use super::target::{Endpoint, Target};
use crate::model::shell::quoted;
use crate::ssh::forward::{Greeting, greeting_at};
use crate::ssh::relay::{Listening, Relay};
use crate::ssh::shell::PROCESS_FUNCTIONS;
use crate::ssh::{Ssh, SshError};
use crate::sys::process::ProcessId;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// The interval at which the controller is located.
const CHECKS_EVERY: Duration = Duration::from_secs(5);
/// The timeout of a controller's greeting.
const GREETS: Duration = Duration::from_secs(6);
/// The timeout for an ssh process to exit after it has closed its connections.
const ENDS: Duration = Duration::from_millis(100);
/// An engine that has not reconnected within this time after the tunnel was up is considered gone.
const COMES_BACK: Duration = Duration::from_secs(10);
/// The timeout of the other host's answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// After this time without a controller, the engines have also given up.
const ORPHANED: Duration = Duration::from_secs(15 * 60);
/// The maximum number of ports to try.
const TRIES: u32 = 20;
/// The first port to try; below the range that systems assign automatically, so that no process gets one by chance while the tunnel is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

pub(crate) struct Reverse<T> {
    target: T,
    relay: Relay,
    listening: Vec<Listening>,
    /// The controller's ports, which are the target.
    ports: BTreeMap<String, u16>,
    opened: Instant,
    checked: Instant,
    /// Previous connections are held for engines that may reconnect.
    holds: bool,
    /// The time since which the controller has not been found.
    missing_since: Option<Instant>,
}

impl<T: Target> Reverse<T> {
    pub(crate) fn new(target: T) -> Reverse<T> {
        Reverse {
            target,
            relay: Relay::default(),
            listening: Vec::new(),
            ports: BTreeMap::new(),
            opened: Instant::now(),
            checked: Instant::now(),
            holds: false,
            missing_since: None,
        }
    }

    async fn locate(&mut self, ssh: &Ssh) -> Result<Endpoint, TunnelError> {
        let located = self.target.locate(ssh).await;
        self.missing_since = match &located {
            Ok(_) => None,
            Err(_) => self.missing_since.or_else(|| Some(Instant::now())),
        };
        located
    }

    fn is_missing_for_good(&self) -> bool {
        self.missing_since.is_some_and(|since| since.elapsed() > ORPHANED)
    }
}

impl<T: Target> Tunnel for Reverse<T> {
    const REOPENS: bool = false;
    const SETTLES: Duration = ENDS;
    const REMOVES_STATE: bool = false;

    async fn open(&mut self, ssh: &Ssh, state: &mut TunnelState) -> Result<(), TunnelError> {
        end_previous_session(ssh, state).await?;
        let endpoint = self.locate(ssh).await?;
        let address = find(&endpoint, state.channels.first()).await?;
        self.relay.new_connection();
        for name in state.channels.clone() {
            let Some(port) = endpoint.ports.get(&name) else {
                return Err(TunnelError::Internal(format!("the connection file has no channel {name}")));
            };
            let path = ssh.control_dir().join(&name);
            let listening = self.relay.listen(&path, &address, *port).map_err(|e| TunnelError::State {
                doing: "listen at",
                path: path.clone(),
                why: e.to_string(),
            })?;
            self.listening.push(listening);
            forward(ssh, state, &name, &path).await?;
        }
        let leads_to = LeadsTo {
            address,
            ..endpoint.leads_to
        };
        self.target.established(&leads_to, &state.ports)?;
        state.leads_to = Some(leads_to);
        self.ports = endpoint.ports;
        self.holds = true;
        (self.opened, self.checked) = (Instant::now(), Instant::now());
        Ok(())
    }

    async fn disturbed(&mut self) {
        self.relay.far_side_ended().await;
    }

    async fn check(&mut self, ssh: &Ssh, event: LinkEvent) -> Result<Check, TunnelError> {
        if event.disturbed {
            self.relay.confirm_alive();
        }
        if self.holds && self.opened.elapsed() > COMES_BACK {
            // All previous engines that are still alive have reconnected.
            self.relay.release();
            self.holds = false;
        }
        if event.suspended {
            ssh.run(&["true"], b"", ANSWERS).await?;
        }
        if self.checked.elapsed() < CHECKS_EVERY {
            return Ok(Check::Fine);
        }
        self.checked = Instant::now();
        match self.locate(ssh).await {
            Ok(endpoint) if endpoint.ports != self.ports => {
                tracing::info!("the controller uses other ports now");
                Ok(Check::Moved)
            }
            Err(error) if self.is_missing_for_good() => {
                tracing::warn!("{error}; no controller for {} s", ORPHANED.as_secs());
                Ok(Check::Orphaned)
            }
            Ok(_) | Err(_) => Ok(Check::Fine),
        }
    }

    fn close(&mut self) {
        self.listening.clear();
    }

    fn lost(&mut self) {
        self.target.lost();
    }

    /// A lost connection is no evidence about the controller.
    fn is_orphaned(&self, error: &TunnelError) -> bool {
        error.is_missing() && self.is_missing_for_good()
    }
}

/// The first address at which the controller greets.
async fn find(endpoint: &Endpoint, channel: Option<&String>) -> Result<String, TunnelError> {
    let Some(port) = channel.and_then(|name| endpoint.ports.get(name)).copied() else {
        return Err(TunnelError::Internal("the connection file has no such channel".into()));
    };
    let mut tried = Vec::new();
    for address in &endpoint.addresses {
        match greeting_at(address, port, GREETS).await {
            Ok(Greeting::Speaks) => return Ok(address.clone()),
            Ok(Greeting::Closed) => tried.push(format!("{address}:{port} (connection closed)")),
            Ok(Greeting::Silent) => tried.push(format!("{address}:{port} (no greeting)")),
            Err(why) => tried.push(format!("{address}:{port} ({why})")),
        }
    }
    Err(TunnelError::NoAnswer {
        from: "this host".into(),
        tried,
        log: String::new(),
        hints: endpoint.hints.clone(),
    })
}

/// After a network failure, the remote process of the previous connection may still run and hold the ports: ends it. Records the one that
/// serves this connection.
async fn end_previous_session(ssh: &Ssh, state: &mut TunnelState) -> Result<(), TunnelError> {
    let previous = state.session.take();
    let end = previous.as_ref().map_or(String::new(), end_script);
    // `$PPID` is the process of sshd that serves this connection: it holds its forwards.
    let about = ProcessId::ABOUT;
    let script = format!("{about}{PROCESS_FUNCTIONS}{end}start_ticks $PPID && echo \"session $s\"\n:");
    let text = ssh.ask(&script, ANSWERS).await?;
    if text.lines().any(|line| line == "ended") {
        tracing::info!("ended the remote process of the previous connection on {}", state.destination);
    }
    // The user's own connection must not be ended.
    state.session = session(&text).filter(|_| !ssh.is_borrowed());
    Ok(())
}

/// The port that the engines know; the first time, a free one.
async fn forward(ssh: &Ssh, state: &mut TunnelState, name: &str, path: &Path) -> Result<(), TunnelError> {
    if let Some(known) = state.ports.get(name).copied() {
        return match ssh.forward_remote(known, path).await {
            Err(SshError::Forward { why, .. }) => Err(TunnelError::PortTaken {
                to: state.destination.clone(),
                port: known,
                why,
            }),
            done => Ok(done?),
        };
    }
    let mut tries = 0;
    loop {
        let port = any_port(uuid::Uuid::new_v4().as_u128());
        match ssh.forward_remote(port, path).await {
            Ok(()) => {
                state.ports.insert(name.to_string(), port);
                return Ok(());
            }
            Err(SshError::Forward { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn any_port(random: u128) -> u16 {
    PORTS.start + (random % u128::from(PORTS.end - PORTS.start)) as u16
}

fn end_script(previous: &ProcessId) -> String {
    let (pid, ticks) = (previous.pid, previous.ticks.unwrap_or_default());
    format!(
        r#"if [ "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" = {} ] && [ {pid} != $PPID ] && is_same {pid}:{ticks} && kill -TERM {pid} 2>/dev/null; then
  i=0; while is_same {pid}:{ticks} && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
  echo ended
fi
"#,
        quoted(&previous.boot_id)
    )
}

/// Parses the process in `session PID (…) …`, of the host that printed it.
fn session(text: &str) -> Option<ProcessId> {
    let stat = text.lines().find_map(|line| line.strip_prefix("session "))?;
    ProcessId::from_script(text, stat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_below_the_ephemeral_range() {
        for random in [0, 21_999, 22_000, u128::MAX] {
            assert!(PORTS.contains(&any_port(random)));
        }
    }

    #[test]
    fn only_the_process_of_the_previous_connection_is_ended() {
        let run = |script: String| {
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mut left = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let printed = run(format!(
            "{}{PROCESS_FUNCTIONS}start_ticks {} && echo \"session $s\"",
            ProcessId::ABOUT,
            left.id()
        ));
        let found = session(&printed).unwrap();
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

    #[tokio::test]
    async fn an_unreachable_address_is_not_a_controller() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let endpoint = Endpoint {
            addresses: vec!["127.0.0.1".into()],
            ports: BTreeMap::from([("native".to_string(), port)]),
            ..Endpoint::default()
        };
        let error = find(&endpoint, Some(&"native".to_string())).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("refused"), "{error}");
        assert!(find(&endpoint, Some(&"task".to_string())).await.is_err());
    }
}
