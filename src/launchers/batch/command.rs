//! A command to be run, and what it said. Running it is another's work.
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub program: String,
    pub arguments: Vec<String>,
    /// Set for this command alone.
    pub env: Vec<(String, String)>,
    /// Variables that it does not get, but for those in `keeping`; see [`super::environment`].
    pub without: Vec<&'static str>,
    pub keeping: Vec<&'static str>,
    /// What it says is to be read: in English.
    pub in_english: bool,
    /// What it reads; by default nothing.
    pub stdin: Option<String>,
}

impl CommandLine {
    pub fn new<T: Into<String>>(program: &str, arguments: impl IntoIterator<Item = T>) -> CommandLine {
        CommandLine {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            ..CommandLine::default()
        }
    }

    #[cfg(test)]
    pub fn with_env(mut self, name: &str, value: &str) -> CommandLine {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// As it could be typed into a shell.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={} ", super::quote::shell(value))?;
        }
        f.write_str(&super::quote::shell(&self.program))?;
        for argument in &self.arguments {
            write!(f, " {}", super::quote::shell(argument))?;
        }
        Ok(())
    }
}

/// What a command said. Bytes that are no UTF-8 are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// All that it said, without blank lines around: stderr, then stdout.
    pub fn said(&self) -> String {
        let parts = [self.stderr.trim(), self.stdout.trim()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("\n")
    }
}
