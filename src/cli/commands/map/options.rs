//! Options of everything that makes a map, and what becomes of them.
use crate::model::MapId;
use crate::model::definition::MapOptions;
use crate::model::query::parse_duration;
use std::collections::BTreeMap;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub struct TaskOptions {
    /// Stop a task that runs longer (90, 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Kill a task whose processes take more memory (500M, 2G); that counts as a crash
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub mem: Option<u64>,
    /// How often a task that failed is run again
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retries: u32,
    /// How often a task whose worker or engine died is run again
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_crashes: u32,
    /// What the map is called in listings [default: the function or the command]
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// A word to find it by: pcluster results --label TEXT
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Working directory on the engines, from this one on [default: this one where it exists, else the engine's own]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// An environment variable of the tasks; K alone passes on its value here
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Start when that map has finished; if tasks of it failed, these are aborted
    #[arg(long, value_name = "MAP")]
    pub after: Option<MapId>,
}

impl TaskOptions {
    pub fn to_map_options(&self) -> MapOptions {
        MapOptions {
            name: self.name.clone(),
            label: self.label.clone(),
            timeout_s: self.timeout,
            mem_bytes: self.mem,
            retries: self.retries,
            max_crashes: self.max_crashes,
            cwd: self.cwd.as_deref().map(absolute),
            directory: current_directory(),
            env: BTreeMap::from_iter(self.env.iter().cloned()),
            reduces: None,
            after: self.after,
            targets: None,
            interactive: false,
        }
    }
}

/// A working directory as it was meant where it was typed; `~` is left to the engines.
fn absolute(directory: &str) -> String {
    let absolute = std::path::absolute(directory).ok().filter(|_| !directory.starts_with('~'));
    let text = absolute.and_then(|path| path.into_os_string().into_string().ok());
    text.unwrap_or_else(|| directory.to_string())
}

/// This directory, where its name is text.
pub fn current_directory() -> Option<String> {
    std::env::current_dir().ok()?.into_os_string().into_string().ok()
}

fn seconds(text: &str) -> Result<f64, String> {
    match parse_duration(text) {
        Some(seconds) if seconds > 0.0 => Ok(seconds),
        Some(_) => Err("a task cannot be done in no time".into()),
        None => Err("write a number with s, m, h or d behind it: 90s, 10m, 2h".into()),
    }
}

/// A number, with or without K, M, G or T (powers of 1024) behind it.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    let word = text.trim().to_ascii_uppercase();
    let word = word.strip_suffix("IB").or(word.strip_suffix('B')).unwrap_or(&word);
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = UNITS.iter().position(|unit| *unit == &word[number.len()..]);
    match (number.parse::<f64>(), unit) {
        (Ok(count), Some(unit)) if count.is_finite() && count > 0.0 => Ok((count * 1024f64.powi(unit as i32)) as u64),
        _ => Err("write a size: 500M, 2G".into()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_string()),
        None => (
            text,
            std::env::var(text).map_err(|_| format!("{text} is not set here; write {text}=value"))?,
        ),
    };
    match name {
        "" => Err("write NAME=value".into()),
        _ => Ok((name.to_string(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_durations() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("=x").is_err());
        assert!(variable("PCLUSTER_NO_SUCH_VARIABLE").unwrap_err().contains("is not set here"));
        assert_eq!(seconds("1.5m"), Ok(90.0));
        assert_eq!(bytes("500M"), Ok(500 << 20));
        assert_eq!(
            (bytes("1.5g"), bytes("2GiB"), bytes("7kb")),
            (Ok(3 << 29), Ok(2 << 30), Ok(7 << 10))
        );
        assert_eq!((bytes("4096"), bytes("1T")), (Ok(4096), Ok(1 << 40)));
        for bad in ["", "M", "2X", "-1G", "0", "inf", "nan", "2 G", "é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(seconds("0").is_err() && seconds("soon").is_err());
    }
}
