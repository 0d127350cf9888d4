//! Errors of commands: what failed, why, and what to do next. The only place that chooses exit codes.
use super::context::Context;
use super::output::visible::visible;
use crate::client::ClientError;
use crate::cluster::ClusterError;
use crate::cluster::remote::RemoteError;
use crate::connection::ConnectionError;
use crate::controller::ControllerError;
use crate::db::{DbError, DbErrorKind};
use crate::engine::EngineError;
use crate::launchers::LaunchError;
use crate::launchers::supervisor::TEMPORARY;
use crate::profile::{ConfigError, ProfileError};
use crate::ssh::SshError;
use crate::ssh::tunnel::TunnelError;
use std::fmt::Display;

/// How a command that completed its work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Fine,
    /// Some tasks failed; the command has reported them.
    SomeFailed,
    /// Interrupted by Ctrl-C; the command has reported the consequences.
    Interrupted,
    /// The exit code of the supervised process, which has reported the reason.
    OfSupervised(u8),
    /// A check of `doctor` failed.
    Unfit,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Fine => 0,
            Exit::SomeFailed => 1,
            Exit::Unfit => 5,
            Exit::Interrupted => 130,
            Exit::OfSupervised(code) => code,
        }
    }
}

/// Each kind is one exit code; `docs/reference/cli.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Some tasks failed, or a timeout expired.
    Failed,
    /// Bad arguments or bad input.
    Usage,
    /// No such cluster, map, task, engine; no cluster running.
    NotFound,
    /// The controller is unreachable, or refused the request.
    Refused,
    /// Python, ports, files, permissions.
    Environment,
    /// A controller that cannot start at present: its supervisor tries again.
    Temporary,
    /// A bug in pcluster.
    Internal,
    Interrupted,
    /// The reader of stdout has closed it: nothing is printed.
    OutputClosed,
}

impl ErrorKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Refused => 4,
            ErrorKind::Environment => 5,
            ErrorKind::Internal => 70,
            ErrorKind::Temporary => TEMPORARY,
            ErrorKind::Interrupted => 130,
            // As a shell shows a process that SIGPIPE ended.
            ErrorKind::OutputClosed => 141,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandError {
    pub kind: ErrorKind,
    /// One sentence without a full stop: what was tried, on what, why it failed.
    pub error: String,
    /// Hints, one line each.
    pub hints: Vec<String>,
}

impl CommandError {
    pub(crate) fn new(kind: ErrorKind, error: impl Display) -> CommandError {
        CommandError {
            kind,
            error: error.to_string(),
            hints: Vec::new(),
        }
    }
    pub(crate) fn failed(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Failed, error)
    }
    pub(crate) fn usage(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Usage, error)
    }
    pub(crate) fn not_found(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::NotFound, error)
    }
    pub(crate) fn refused(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Refused, error)
    }
    pub(crate) fn environment(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Environment, error)
    }
    pub(crate) fn internal(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Internal, error)
    }
    /// Writing to stdout failed.
    pub(crate) fn output(error: std::io::Error) -> CommandError {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => CommandError::new(ErrorKind::OutputClosed, error),
            _ => CommandError::environment(format!("cannot write the output: {error}")),
        }
    }
    pub(crate) fn hint(mut self, hint: impl Display) -> CommandError {
        self.hints.push(hint.to_string());
        self
    }
    pub(crate) fn hints(mut self, hints: impl IntoIterator<Item = String>) -> CommandError {
        self.hints.extend(hints);
        self
    }

    /// Replaces the message of an interruption by what it caused.
    pub(crate) fn with_interruption(mut self, what: &str) -> CommandError {
        if self.kind == ErrorKind::Interrupted {
            self.error = format!("interrupted; {what}");
        }
        self
    }

    /// The lines for stderr.
    pub(crate) fn render(&self, color: bool) -> String {
        let (red, cyan, end) = if color {
            ("\x1b[1;31m", "\x1b[36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let mut text = format!("{red}error:{end} {}\n", visible(&self.error));
        for hint in &self.hints {
            text.push_str(&format!("{cyan}hint:{end} {}\n", visible(hint)));
        }
        if self.kind == ErrorKind::Internal {
            text.push_str(&format!(
                "{cyan}hint:{end} this is a bug in pcluster {}; please report it\n",
                crate::model::VERSION
            ));
        }
        text
    }

    /// Prints the error and returns its exit code.
    pub(crate) fn report(&self, context: &Context) -> u8 {
        if self.kind != ErrorKind::OutputClosed {
            super::output::stderr_text(&self.render(context.terminal.color_stderr));
        }
        self.kind.code()
    }
}

impl From<ProfileError> for CommandError {
    fn from(error: ProfileError) -> Self {
        let kind = match error {
            ProfileError::BadName { .. } => ErrorKind::Usage,
            _ => ErrorKind::Environment,
        };
        CommandError::new(kind, error)
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        let kind = match error {
            ConfigError::Read { .. } => ErrorKind::Environment,
            _ => ErrorKind::Usage,
        };
        let hint = error.hint().map(str::to_string);
        CommandError::new(kind, error).hints(hint)
    }
}

impl From<ConnectionError> for CommandError {
    fn from(error: ConnectionError) -> Self {
        let kind = match error {
            ConnectionError::Missing { .. } | ConnectionError::Stale { .. } => ErrorKind::NotFound,
            ConnectionError::NotPcluster { .. } => ErrorKind::Refused,
            _ => ErrorKind::Environment,
        };
        let hint = error.hint();
        CommandError::new(kind, error).hints(hint)
    }
}

impl From<DbError> for CommandError {
    fn from(error: DbError) -> Self {
        let kind = match error.kind {
            DbErrorKind::Missing => ErrorKind::NotFound,
            DbErrorKind::Query => ErrorKind::Usage,
            _ => ErrorKind::Environment,
        };
        let hint = error.hint();
        CommandError::new(kind, error).hints(hint)
    }
}

impl From<TunnelError> for CommandError {
    fn from(error: TunnelError) -> Self {
        let hints = error.hints();
        CommandError::new(tunnel_kind(&error), error).hints(hints)
    }
}

impl From<ClusterError> for CommandError {
    fn from(error: ClusterError) -> Self {
        let kind = match error {
            ClusterError::Profile(error) => return error.into(),
            ClusterError::Config(error) => return error.into(),
            ClusterError::Connection(error) => return error.into(),
            ClusterError::Client(error) => return error.into(),
            ClusterError::Launch(
                LaunchError::UnknownLauncher { .. }
                | LaunchError::BadCommand { .. }
                | LaunchError::Template(_)
                | LaunchError::NoHosts
                | LaunchError::NotEnoughSlots { .. }
                | LaunchError::OnlyEngines { .. },
            ) => ErrorKind::Usage,
            ClusterError::NotRunning { .. } | ClusterError::NotElastic { .. } => ErrorKind::NotFound,
            ClusterError::Elastic(_) | ClusterError::TooManyForHosts { .. } => ErrorKind::Usage,
            ClusterError::Ssh(ref error) => ssh_kind(error),
            ClusterError::Tunnel(ref error) => tunnel_kind(error),
            ClusterError::Remote(ref error) => remote_kind(error),
            ClusterError::Running { .. }
            | ClusterError::Foreign { .. }
            | ClusterError::Elsewhere { .. }
            | ClusterError::Left { .. }
            | ClusterError::IsElastic { .. }
            | ClusterError::Busy { .. } => ErrorKind::Refused,
            ClusterError::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::Environment,
        };
        let hints = error.hints();
        CommandError::new(kind, error).hints(hints)
    }
}

fn ssh_kind(error: &SshError) -> ErrorKind {
    match error {
        SshError::BadDestination { .. } => ErrorKind::Usage,
        SshError::NoSsh(_) | SshError::ControlDir { .. } => ErrorKind::Environment,
        _ => ErrorKind::Refused,
    }
}

fn tunnel_kind(error: &TunnelError) -> ErrorKind {
    match error {
        TunnelError::Ssh(error) => ssh_kind(error),
        TunnelError::Reported { missing: true, .. } => ErrorKind::NotFound,
        TunnelError::Listen(_) | TunnelError::Start { .. } | TunnelError::State { .. } | TunnelError::Ended { .. } => {
            ErrorKind::Environment
        }
        TunnelError::Internal(_) => ErrorKind::Internal,
        _ => ErrorKind::Refused,
    }
}

fn remote_kind(error: &RemoteError) -> ErrorKind {
    match error {
        RemoteError::NoCluster { .. } | RemoteError::Gone { .. } | RemoteError::NotConnected { .. } => ErrorKind::NotFound,
        RemoteError::Program(_) => ErrorKind::Environment,
        RemoteError::OtherMachine { .. } | RemoteError::DoesNotRun { .. } | RemoteError::NotInstalled { .. } => ErrorKind::Environment,
        // The same kinds as for a local command.
        RemoteError::Failed { code, .. } => match code {
            Some(1) => ErrorKind::Failed,
            Some(2) => ErrorKind::Usage,
            Some(3) => ErrorKind::NotFound,
            Some(4) => ErrorKind::Refused,
            Some(130) => ErrorKind::Interrupted,
            _ => ErrorKind::Environment,
        },
        _ => ErrorKind::Refused,
    }
}

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::BadConnectionFile(_) | EngineError::System(_) => ErrorKind::Environment,
            EngineError::Unreachable(_) | EngineError::Refused(_) | EngineError::ControllerGone(_) => ErrorKind::Refused,
        };
        CommandError::new(kind, error)
    }
}

impl From<ControllerError> for CommandError {
    fn from(error: ControllerError) -> Self {
        let is_transient = error.is_transient();
        let mut error: CommandError = match error {
            ControllerError::Db(error) => error.into(),
            ControllerError::Connection(error) => error.into(),
            ControllerError::Running { .. } => {
                CommandError::refused(error).hint("list it with `pcluster list`, stop it with `pcluster stop`")
            }
            ControllerError::Transport(_) => {
                CommandError::environment(error).hint("run `pcluster doctor` to check the network, or set controller.ip in pcluster.yaml")
            }
            ControllerError::Prepare { .. } | ControllerError::System { .. } => CommandError::environment(error),
        };
        if is_transient {
            error.kind = ErrorKind::Temporary;
        }
        error
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Inputs { .. } | ClientError::TooLarge { .. } => ErrorKind::Usage,
            ClientError::Refused { refusal, .. } if refusal.is_not_found() => ErrorKind::NotFound,
            _ => ErrorKind::Refused,
        };
        CommandError {
            kind,
            error: error.to_string(),
            hints: error.hints(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_line_and_its_hints() {
        let error = CommandError::not_found("no cluster is running in profile `default`").hint("pcluster start -n 4");
        assert_eq!(
            error.render(false),
            "error: no cluster is running in profile `default`\nhint: pcluster start -n 4\n"
        );
        assert_eq!(error.kind.code(), 3);
    }

    #[test]
    fn a_closed_pipe_is_not_reported() {
        let error = CommandError::output(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.kind, ErrorKind::OutputClosed);
        assert_eq!(CommandError::output(std::io::Error::other("full")).kind, ErrorKind::Environment);
    }

    /// Each error of a cluster, with its exit code.
    #[test]
    fn errors_of_clusters_have_their_exit_codes() {
        let cluster = || "the cluster of profile \"default\"".to_string();
        let launch = |error| CommandError::from(ClusterError::Launch(error));
        let old = LaunchError::OldPython {
            python: "/usr/bin/python3".into(),
            version: "3.6.8".into(),
        };
        for (error, code, says) in [
            (
                ClusterError::Running {
                    cluster: cluster(),
                    options: String::new(),
                    controller: Some(crate::sys::process::ProcessId {
                        pid: 7,
                        host: "n1".into(),
                        ..Default::default()
                    }),
                }
                .into(),
                4,
                "is already running",
            ),
            (
                ClusterError::NotRunning {
                    cluster: cluster(),
                    options: String::new(),
                }
                .into(),
                3,
                "no cluster is running",
            ),
            (
                ClusterError::Busy {
                    path: "/lock".into(),
                    passes: false,
                    holder: None,
                }
                .into(),
                4,
                "another pcluster command",
            ),
            (
                ClusterError::ControllerEnded {
                    ending: "exit code 5".into(),
                    log: "/log".into(),
                    tail: "cannot listen on 127.0.0.1:4000: address in use".into(),
                }
                .into(),
                5,
                "address in use",
            ),
            (launch(old), 5, "pcluster requires 3.8 or later"),
            (
                launch(LaunchError::UnknownLauncher {
                    name: "x".into(),
                    known: vec!["local"],
                }),
                2,
                "unknown launcher",
            ),
            (
                ClientError::VersionMismatch {
                    version: "9.0".into(),
                    protocol: 9,
                }
                .into(),
                4,
                "protocol 9",
            ),
            (
                ClientError::Refused {
                    request: "cancel_request".into(),
                    refusal: "NoSuchMap".to_string().into(),
                    evalue: "there is no map 7".into(),
                    hint: Some("pcluster results".into()),
                }
                .into(),
                3,
                "no map 7",
            ),
            (
                ControllerError::Running {
                    pid: 7,
                    host: "n1".into(),
                    file: "/f".into(),
                }
                .into(),
                4,
                "is already running",
            ),
            (
                ControllerError::Db(DbError::new(DbErrorKind::Full, "open", "/db".as_ref(), "database or disk is full")).into(),
                75,
                "disk is full",
            ),
            (EngineError::ControllerGone(600).into(), 4, "600 s"),
        ] {
            let error: CommandError = error;
            assert_eq!(error.kind.code(), code, "{}", error.error);
            assert!(error.error.contains(says), "{}", error.error);
            // The hints of `start` name the log of the engine.
            assert!(
                !error.hints.is_empty() || error.error.contains("600 s"),
                "{} has no hint",
                error.error
            );
        }
    }

    #[test]
    fn a_typo_in_the_settings_is_shown_with_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let profile = crate::profile::ProfileDir::named("p", Some(dir.path())).unwrap();
        profile.create().unwrap();
        std::fs::write(profile.config_file(), "controller:\n  heartbeat_interval_ms: 500\n  hwmm: 2\n").unwrap();
        let error = CommandError::from(crate::profile::Config::load(&profile).unwrap_err());
        assert_eq!(error.kind, ErrorKind::Usage);
        insta::assert_snapshot!(error.render(false).replace(&dir.path().display().to_string(), "DIR"), @r"
        error: DIR/profile_p/pcluster.yaml:3:3: controller: unknown key `hwmm`
          3 |   hwmm: 2
            |   ^
        hint: did you mean `hwm`?
        ");
    }

    #[test]
    fn colours_do_not_change_the_text() {
        let error = CommandError::usage("bad").hint("do this");
        let colored = error.render(true);
        assert!(colored.contains("\x1b["));
        let plain = ["\x1b[1;31m", "\x1b[36m", "\x1b[0m"]
            .iter()
            .fold(colored, |text, code| text.replace(code, ""));
        assert_eq!(plain, error.render(false));
    }
}
