//! Reverse: ports of the other host's loopback lead to a controller that this host reaches.
use super::daemon::{Check, Event, Tunnel};
use super::error::TunnelError;
use super::state::{LeadsTo, TunnelState};
use super::target::{Endpoint, Target};
use crate::ssh::forward::{Greeting, greeting_at};
use crate::ssh::relay::{Listening, Relay};
use crate::ssh::shell::PROCESS_FUNCTIONS;
use crate::ssh::{Ssh, SshError, quoted};
use crate::sys::process::ProcessId;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is checked where the controller is.
const CHECKS_EVERY: Duration = Duration::from_secs(5);
/// How long a controller may take to greet.
const GREETS: Duration = Duration::from_secs(6);
/// How long an ssh process that has closed its connections may take to be gone.
const ENDS: Duration = Duration::from_millis(100);
/// An engine that has not connected again for so long after the tunnel was up has gone with its connection.
const COMES_BACK: Duration = Duration::from_secs(10);
/// How long the other host may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// Without a controller for so long, the engines have given up, too.
const ORPHANED: Duration = Duration::from_secs(15 * 60);
/// How many ports are tried where the first ones are taken.
const TRIES: u32 = 20;
/// Ports from here up, below those that systems assign by themselves: nobody gets them by chance while the tunnel is away.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

pub struct Reverse<T> {
    target: T,
    relay: Relay,
    listening: Vec<Listening>,
    /// The controller's, that it leads to.
    ports: BTreeMap<String, u16>,
    opened: Instant,
    checked: Instant,
    /// Connections of before are held for engines that may connect again.
    holds: bool,
    /// Since when the controller has not been found.
    missing_since: Option<Instant>,
}

impl<T: Target> Reverse<T> {
    pub fn new(target: T) -> Reverse<T> {
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

    async fn check(&mut self, ssh: &Ssh, event: Event) -> Result<Check, TunnelError> {
        if event.disturbed {
            self.relay.confirm_alive();
        }
        if self.holds && self.opened.elapsed() > COMES_BACK {
            // Those of the engines of before that are still there have connected again.
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
                tracing::info!("the controller is at other ports now");
                Ok(Check::Moved)
            }
            Err(error) if self.is_missing_for_good() => {
                tracing::warn!("{error}; for {} s there was no controller", ORPHANED.as_secs());
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

    /// A lost connection tells nothing of the controller.
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
            Ok(Greeting::Closed) => tried.push(format!("{address}:{port} (it was closed)")),
            Ok(Greeting::Silent) => tried.push(format!("{address}:{port} (it says nothing)")),
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

/// After a cut the process that served the connection before may live on there, and hold the ports: it is ended. Notes the one that
/// serves this connection.
async fn end_previous_session(ssh: &Ssh, state: &mut TunnelState) -> Result<(), TunnelError> {
    let previous = state.session.take();
    let end = previous.as_ref().map_or(String::new(), end_script);
    // `$PPID` is the process of sshd that serves this connection: it holds its forwards.
    let about = ProcessId::ABOUT;
    let script = format!("{about}{PROCESS_FUNCTIONS}{end}start_ticks $PPID && echo \"session $s\"\n:");
    let text = ssh.ask(&script, ANSWERS).await?;
    if text.lines().any(|line| line == "ended") {
        tracing::info!("ended what was left of the connection before on {}", state.destination);
    }
    // One that is the user's own is not ours to end.
    state.session = session(&text).filter(|_| !ssh.is_borrowed());
    Ok(())
}

/// The port that the engines know; at first one that is free.
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

    #[tokio::test]
    async fn what_does_not_greet_is_no_controller() {
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
