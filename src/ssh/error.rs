//! Errors of ssh connections, recognized from the output of ssh, with hints.
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("{text:?} is not an ssh destination: {why}")]
    BadDestination { text: String, why: &'static str },
    #[error("cannot run ssh: {0}")]
    NoSsh(std::io::Error),
    #[error("ssh does not accept {to}, or its configuration:{}", lines(output))]
    Configuration { to: String, output: String },
    #[error("cannot create the private directory {} for ssh's sockets: {why}", path.display())]
    ControlDir { path: PathBuf, why: String },
    #[error("cannot connect to {to}: {what}{}", lines(output))]
    Connect { to: String, what: ConnectFailure, output: String },
    #[error("{to} has not answered for {seconds} s ({doing})")]
    Silent { to: String, doing: &'static str, seconds: u64 },
    #[error("the connection to {to} is lost: {why}")]
    Lost { to: String, why: String },
    #[error("{to} does not forward {from} to {target}: {why}")]
    Forward {
        to: String,
        from: String,
        target: String,
        why: String,
    },
    #[error("{to} has answered with something unexpected:{}", lines(printed))]
    Unexpected { to: String, printed: String },
    #[error("cannot write {path} on {to}:{}", lines(output))]
    Put { to: String, path: String, output: String },
}

/// Why a connection failed. Output of ssh that is not recognized is [`ConnectFailure::Other`], and is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectFailure {
    #[error("unknown host")]
    UnknownName,
    #[error("it does not answer")]
    NoAnswer,
    #[error("no ssh server listens on that port")]
    Refused,
    #[error("no route to host")]
    Unreachable,
    #[error("its host key has CHANGED: it may be another host")]
    HostKeyChanged,
    #[error("its host key is unknown")]
    HostKeyUnknown,
    #[error("password required; use a key or an agent")]
    AsksPassword,
    #[error("it does not accept any of your keys")]
    NotAccepted,
    #[error("it closed the connection")]
    Closed,
    #[error("ssh failed")]
    Other,
}

impl ConnectFailure {
    /// Recognizes the output of ssh. The texts are OpenSSH's (ssh.c, sshconnect.c, sshconnect2.c), which have been the same for years.
    pub(crate) fn of(output: &str) -> ConnectFailure {
        let has = |words: &str| output.contains(words);
        if has("IDENTIFICATION HAS CHANGED") {
            ConnectFailure::HostKeyChanged
        } else if has("Host key verification failed") || has("host key is known for") {
            ConnectFailure::HostKeyUnknown
        } else if has("Could not resolve hostname") {
            ConnectFailure::UnknownName
        } else if has("Permission denied (") || has("Too many authentication failures") || has("No supported authentication methods") {
            match has("password") || has("keyboard-interactive") {
                true => ConnectFailure::AsksPassword,
                false => ConnectFailure::NotAccepted,
            }
        } else if has("timed out") {
            ConnectFailure::NoAnswer
        } else if has("Connection refused") {
            ConnectFailure::Refused
        } else if has("No route to host") || has("Network is unreachable") {
            ConnectFailure::Unreachable
        } else if has("Connection closed") || has("Connection reset") || has("kex_exchange_identification") {
            ConnectFailure::Closed
        } else {
            ConnectFailure::Other
        }
    }

    fn hint(self, to: &str) -> Option<String> {
        let host = to.rsplit('@').next().unwrap_or(to);
        Some(match self {
            ConnectFailure::UnknownName => "check the spelling; a short name needs an entry in ~/.ssh/config (Host, HostName)".into(),
            ConnectFailure::NoAnswer | ConnectFailure::Refused | ConnectFailure::Unreachable => {
                format!("is it up, and does it need a VPN or a jump host (ProxyJump in ~/.ssh/config)? try `ssh {to}`")
            }
            ConnectFailure::HostKeyChanged => {
                format!("ask its administrators; if its key has really changed: ssh-keygen -R {host}, then `ssh {to}` once")
            }
            ConnectFailure::HostKeyUnknown => format!("run `ssh {to}` once, compare the key with what the site publishes, and accept it"),
            ConnectFailure::AsksPassword => format!(
                "use a key (ssh-copy-id {to}), or log in yourself and keep the connection open for pcluster: \
                 ControlMaster, ControlPath and ControlPersist in ~/.ssh/config, then `ssh {to}`"
            ),
            ConnectFailure::NotAccepted => {
                format!(
                    "is the key in the agent (ssh-add -l), and installed on the host (ssh-copy-id {to})? `ssh -v {to}` shows which keys are offered"
                )
            }
            ConnectFailure::Closed => format!("it may be overloaded or may refuse your account: `ssh -v {to}` shows details"),
            ConnectFailure::Other => return None,
        })
    }
}

impl SshError {
    pub(super) fn of_connecting(to: &str, error: &openssh::Error) -> SshError {
        if let openssh::Error::Connect(e) = error
            && e.kind() == std::io::ErrorKind::NotFound
            && e.raw_os_error().is_some()
        {
            return SshError::NoSsh(std::io::Error::from(std::io::ErrorKind::NotFound));
        }
        let output = match error {
            openssh::Error::Connect(e) => without_frame(&e.to_string()),
            other => chain(other),
        };
        SshError::Connect {
            to: to.to_string(),
            what: ConnectFailure::of(&output),
            output,
        }
    }

    /// Suggests what to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            SshError::BadDestination { .. } => Some("for example me@login.cluster, or a Host in ~/.ssh/config".into()),
            SshError::NoSsh(_) => Some("install OpenSSH's client (Debian: openssh-client)".into()),
            SshError::Connect { to, what, .. } => what.hint(to),
            SshError::Silent { to, .. } => Some(format!("try `ssh {to} true`: if that hangs too, the problem is on the host")),
            SshError::Forward { to, .. } => Some(format!("the ssh server of {to} may not allow forwarding (AllowTcpForwarding)")),
            SshError::Unexpected { to, .. } => Some(format!(
                "check what `ssh {to} true` prints: a shell's start-up file may print something, or end the shell"
            )),
            SshError::Put { .. } => Some("is its disk full, or does the directory belong to another user?".into()),
            SshError::Configuration { .. } | SshError::ControlDir { .. } | SshError::Lost { .. } => None,
        }
    }

    /// The message with its hint, for a message without a separate field for hints.
    pub(crate) fn with_hint(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}\n  {hint}"),
            None => self.to_string(),
        }
    }

    /// Whether a retry may help without an action of the user.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            SshError::Connect { what, .. } => !matches!(what, ConnectFailure::HostKeyChanged | ConnectFailure::HostKeyUnknown),
            SshError::Silent { .. } | SshError::Lost { .. } | SshError::Forward { .. } => true,
            SshError::ControlDir { .. } | SshError::Unexpected { .. } => true,
            _ => false,
        }
    }
}

/// An error with all its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(&format!(": {words}"));
        }
        next = cause.source();
    }
    text
}

/// Removes ssh's frames of @ signs, and its warnings of hosts that were added.
fn without_frame(output: &str) -> String {
    let dull = |line: &&str| !line.is_empty() && !line.starts_with('@') && !line.starts_with("Warning: Permanently added");
    let framed: String = output
        .lines()
        .map(|l| l.trim_matches(['@', ' ', '\r']))
        .filter(|l| l.starts_with("WARNING:"))
        .map(|l| format!("{l}\n"))
        .collect();
    let plain: Vec<&str> = output.lines().map(str::trim_end).filter(dull).collect();
    format!("{framed}{}", plain.join("\n")).trim_end().to_string()
}

/// Formats the output of another program, to follow a message.
pub(crate) fn lines(output: &str) -> String {
    output.lines().map(|line| format!("\n  | {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are those of OpenSSH 9.2.
    #[test]
    fn errors_of_ssh_are_recognized() {
        for (output, what) in [
            (
                "ssh: Could not resolve hostname nowhere.invalid: Name or service not known",
                ConnectFailure::UnknownName,
            ),
            (
                "ssh: connect to host 10.1.2.3 port 22: Connection timed out",
                ConnectFailure::NoAnswer,
            ),
            ("Connection timed out during banner exchange", ConnectFailure::NoAnswer),
            ("ssh: connect to host login port 22: Connection refused", ConnectFailure::Refused),
            ("ssh: connect to host login port 22: No route to host", ConnectFailure::Unreachable),
            (
                "me@login: Permission denied (publickey,password,keyboard-interactive).",
                ConnectFailure::AsksPassword,
            ),
            ("me@login: Permission denied (publickey).", ConnectFailure::NotAccepted),
            (
                "No ED25519 host key is known for login and you have requested strict checking.\nHost key verification failed.",
                ConnectFailure::HostKeyUnknown,
            ),
            (
                "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
                ConnectFailure::HostKeyChanged,
            ),
            (
                "kex_exchange_identification: read: Connection reset by peer",
                ConnectFailure::Closed,
            ),
            ("Unsupported option gibberish", ConnectFailure::Other),
        ] {
            assert_eq!(ConnectFailure::of(output), what, "{output}");
        }
    }

    #[test]
    fn a_changed_host_key_is_reported_without_the_banner() {
        let output = "@@@@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@@@@@@@\nIT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\nHost key verification failed.";
        let error = SshError::of_connecting("me@login", &openssh::Error::Connect(std::io::Error::other(output)));
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
        cannot connect to me@login: its host key has CHANGED: it may be another host
          | WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!
          | IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
          | Host key verification failed.
        hint: ask its administrators; if its key has really changed: ssh-keygen -R login, then `ssh me@login` once
        ");
    }
}
