//! What the user reads when a command did not work: what was tried, why it failed, what to do next. And the exit code, picked here alone.
use super::context::Context;
use crate::client::ClientError;
use crate::cluster::ClusterError;
use crate::connection::ConnectionError;
use crate::controller::ControllerError;
use crate::db::{DbError, DbErrorKind};
use crate::engine::EngineError;
use crate::launchers::LaunchError;
use crate::profile::{ConfigError, ProfileError};
use std::fmt::Display;
use std::process::ExitCode;

/// How a command ended that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Fine,
    /// The command did its work; some tasks failed (and it has said so).
    SomeFailed,
    /// Ctrl-C (and the command has said what that means).
    Interrupted,
    /// `doctor` found something that will not work (and has said so).
    Unfit,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Fine => 0,
            Exit::SomeFailed => 1,
            Exit::Unfit => 5,
            Exit::Interrupted => 130,
        }
    }
}

/// Each kind is one exit code; `docs/cli-reference.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Some tasks failed, or what was waited for did not come in time.
    Failed,
    /// Bad arguments or bad input.
    Usage,
    /// No such cluster, map, task, engine; no cluster running.
    NotFound,
    /// The controller cannot be reached, or refused.
    Refused,
    /// Python, ports, files, permissions.
    Environment,
    /// A mistake of pcluster's own.
    Internal,
    Interrupted,
    /// Whoever read stdout has gone: nothing is said.
    OutputClosed,
}

impl ErrorKind {
    pub fn code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Refused => 4,
            ErrorKind::Environment => 5,
            ErrorKind::Internal => 70,
            ErrorKind::Interrupted => 130,
            // As a shell shows a process that SIGPIPE ended.
            ErrorKind::OutputClosed => 141,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    pub kind: ErrorKind,
    /// One sentence without a full stop: what was tried, on what, why it failed.
    pub error: String,
    /// What to do next, one line each.
    pub hints: Vec<String>,
}

impl CommandError {
    pub fn new(kind: ErrorKind, error: impl Display) -> CommandError {
        CommandError {
            kind,
            error: error.to_string(),
            hints: Vec::new(),
        }
    }
    pub fn failed(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Failed, error)
    }
    pub fn usage(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Usage, error)
    }
    pub fn not_found(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::NotFound, error)
    }
    pub fn refused(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Refused, error)
    }
    pub fn environment(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Environment, error)
    }
    pub fn internal(error: impl Display) -> CommandError {
        CommandError::new(ErrorKind::Internal, error)
    }
    /// Writing to stdout failed.
    pub fn output(error: std::io::Error) -> CommandError {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => CommandError::new(ErrorKind::OutputClosed, error),
            _ => CommandError::environment(format!("cannot write the output: {error}")),
        }
    }
    pub fn hint(mut self, hint: impl Display) -> CommandError {
        self.hints.push(hint.to_string());
        self
    }
    pub fn hints(mut self, hints: impl IntoIterator<Item = String>) -> CommandError {
        self.hints.extend(hints);
        self
    }

    /// The lines for stderr.
    pub fn render(&self, color: bool) -> String {
        let (red, cyan, end) = if color {
            ("\x1b[1;31m", "\x1b[36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let mut text = format!("{red}error:{end} {}\n", self.error);
        for hint in &self.hints {
            text.push_str(&format!("{cyan}hint:{end} {hint}\n"));
        }
        if self.kind == ErrorKind::Internal {
            text.push_str(&format!(
                "{cyan}hint:{end} this is a mistake in pcluster {}; please report it\n",
                crate::model::VERSION
            ));
        }
        text
    }

    /// Says it, and gives the exit code.
    pub fn report(&self, context: &Context) -> ExitCode {
        if self.kind != ErrorKind::OutputClosed {
            super::output::stderr_text(&self.render(context.terminal.color_stderr));
        }
        ExitCode::from(self.kind.code())
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

impl From<ClusterError> for CommandError {
    fn from(error: ClusterError) -> Self {
        let kind = match error {
            ClusterError::Profile(error) => return error.into(),
            ClusterError::Config(error) => return error.into(),
            ClusterError::Connection(error) => return error.into(),
            ClusterError::Client(error) => return error.into(),
            ClusterError::Launch(LaunchError::UnknownLauncher { .. } | LaunchError::BadCommand { .. }) => ErrorKind::Usage,
            ClusterError::NotRunning { .. } => ErrorKind::NotFound,
            ClusterError::Running { .. } | ClusterError::Foreign { .. } | ClusterError::Elsewhere { .. } | ClusterError::Busy { .. } => {
                ErrorKind::Refused
            }
            ClusterError::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::Environment,
        };
        let hints = error.hints();
        CommandError::new(kind, error).hints(hints)
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
        match error {
            ControllerError::Db(error) => error.into(),
            ControllerError::Connection(error) => error.into(),
            ControllerError::Running { .. } => CommandError::refused(error).hint("`pcluster list` shows it, `pcluster stop` stops it"),
            ControllerError::Transport(_) => CommandError::environment(error)
                .hint("`pcluster doctor` looks at the network; controller.ip in pcluster.yaml says where to listen"),
            ControllerError::Prepare { .. } => CommandError::environment(error),
        }
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Inputs { .. } => ErrorKind::Usage,
            ClientError::Refused { ename, .. } if ename.starts_with("No") || ename.contains("NotFound") => ErrorKind::NotFound,
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
    fn a_closed_pipe_is_no_complaint() {
        let error = CommandError::output(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.kind, ErrorKind::OutputClosed);
        assert_eq!(CommandError::output(std::io::Error::other("full")).kind, ErrorKind::Environment);
    }
}
