//! A command line and its output, as plain data. The caller runs the command.
use crate::model::shell;
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    pub program: String,
    pub arguments: Vec<String>,
    /// Environment variables set for this command only.
    pub env: Vec<(String, String)>,
    /// Environment variables to remove, except those in `kept_vars`; see [`super::environment`].
    pub removed_vars: Vec<&'static str>,
    pub kept_vars: Vec<&'static str>,
    /// Run in the C locale, because the output is parsed.
    pub in_c_locale: bool,
    /// Standard input; empty by default.
    pub stdin: Option<String>,
}

impl CommandLine {
    pub(crate) fn new<T: Into<String>>(program: &str, arguments: impl IntoIterator<Item = T>) -> CommandLine {
        CommandLine {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            ..CommandLine::default()
        }
    }

    #[cfg(test)]
    pub(crate) fn with_env(mut self, name: &str, value: &str) -> CommandLine {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// Formats the command as it could be typed into a shell.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={} ", shell::quoted(value))?;
        }
        f.write_str(&shell::quoted(&self.program))?;
        for argument in &self.arguments {
            write!(f, " {}", shell::quoted(argument))?;
        }
        Ok(())
    }
}

/// The output of a command. Invalid UTF-8 is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandOutput {
    /// None if a signal ended the command.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    pub(crate) fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Stderr, then stdout, without surrounding blank lines.
    pub(crate) fn message(&self) -> String {
        let parts = [self.stderr.trim(), self.stdout.trim()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("\n")
    }
}
