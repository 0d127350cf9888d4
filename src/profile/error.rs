//! Errors of `pcluster.yaml` and `--set`: the position, the line, and the nearest known key.
use super::config::Config;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub enum ConfigError {
    Read {
        path: PathBuf,
        source: io::Error,
    },
    Yaml {
        path: PathBuf,
        position: Option<Box<Position>>,
        message: String,
        hint: Option<String>,
    },
    /// Two contradictory settings.
    Contradiction {
        message: String,
    },
    Setting {
        setting: String,
        message: String,
        hint: Option<String>,
    },
}

/// The position of an error in a file. Lines and columns count from 1.
#[derive(Debug)]
pub struct Position {
    pub line: usize,
    pub column: usize,
    /// The offending line.
    pub text: String,
}

impl ConfigError {
    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        match self {
            ConfigError::Yaml {
                position, message, hint, ..
            } => ConfigError::Yaml {
                path: file.to_path_buf(),
                position,
                message,
                hint,
            },
            other => other,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ConfigError::Read { .. } | ConfigError::Contradiction { .. } => None,
            ConfigError::Yaml { hint, .. } | ConfigError::Setting { hint, .. } => hint.as_deref(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            ConfigError::Contradiction { message } => f.write_str(message),
            ConfigError::Setting { setting, message, .. } => write!(f, "--set {setting}: {message}"),
            ConfigError::Yaml {
                path, position, message, ..
            } => {
                write!(f, "{}", path.display())?;
                let Some(position) = position else {
                    return write!(f, ": {message}");
                };
                let Position { line, column, text } = &**position;
                write!(f, ":{line}:{column}: {message}\n  {line} | {text}\n")?;
                write!(
                    f,
                    "  {:width$} | {:skip$}^",
                    "",
                    "",
                    width = line.to_string().len(),
                    skip = column - 1
                )
            }
        }
    }
}

impl std::error::Error for ConfigError {}

pub(super) fn of_yaml(text: &str, error: &serde_yaml::Error) -> ConfigError {
    let (message, hint) = explain(&error.to_string());
    let position = error.location().map(|at| {
        let text = text.lines().nth(at.line().saturating_sub(1)).unwrap_or_default();
        Box::new(Position {
            line: at.line(),
            column: at.column().max(1),
            text: shortened(text, at.column()),
        })
    });
    ConfigError::Yaml {
        path: PathBuf::new(),
        position,
        message,
        hint,
    }
}

/// The beginning of a line, up to a few words after the column of interest.
pub(super) fn shortened(text: &str, column: usize) -> String {
    let end = column + 80;
    match text.char_indices().nth(end) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

pub(super) fn of_setting(key: &str, value: &str, error: &serde_yaml::Error) -> ConfigError {
    let (message, hint) = explain(&error.to_string());
    ConfigError::Setting {
        setting: shortened(&format!("{key}={value}"), 0),
        message,
        hint,
    }
}

/// A readable form of the parser's message, and a hint.
fn explain(message: &str) -> (String, Option<String>) {
    // The position is shown separately.
    let message = match message.rfind(" at line ") {
        Some(at) => &message[..at],
        None => message,
    };
    if message.contains("cannot start any token") {
        return (
            message.to_string(),
            Some("indent YAML with spaces, not tabs, and quote values with special characters".into()),
        );
    }
    for unknown in ["unknown field ", "unknown variant "] {
        if let Some((before, after)) = message.split_once(unknown) {
            let mut words = after.split('`').skip(1).step_by(2);
            let word = words.next().unwrap_or_default();
            let known: Vec<&str> = words.collect();
            let what = if unknown.contains("field") {
                "unknown key"
            } else {
                "unknown value"
            };
            return (format!("{before}{what} `{word}`"), Some(suggest(word, &known)));
        }
    }
    let mut message = message.to_string();
    for (theirs, ours) in [
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
    ] {
        message = message.replace(theirs, ours);
    }
    if let Some((before, _)) = message.split_once("expected struct ") {
        message = format!("{before}expected `key: value` lines");
    }
    (message, None)
}

fn suggest(word: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(word, known) {
        return format!("did you mean `{near}`?");
    }
    match section_of(word) {
        Some(section) => format!("`{word}` belongs under `{section}:` (`{section}.{word}`); is that line missing or commented out?"),
        None => format!("known keys: {}", known.join(", ")),
    }
}

/// The section with this key.
fn section_of(key: &str) -> Option<String> {
    let serde_yaml::Value::Mapping(sections) = serde_yaml::to_value(Config::default()).ok()? else {
        return None;
    };
    let (section, _) = sections.iter().find(|(_, keys)| keys.get(key).is_some())?;
    section.as_str().map(str::to_string)
}

/// The known word with the least edit distance, if it is likely a typo.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, near) = known.iter().map(|k| (strsim::levenshtein(word, k), *k)).min()?;
    (distance <= 1 + word.chars().count() / 4).then_some(near)
}
