//! Options of commands that create a map.
use super::needs::NeedOptions;
use crate::cli::commands::positive_seconds;
use crate::model::MapId;
use crate::model::definition::MapOptions;
use crate::model::growth::Growth;
use crate::model::memory::Memory;
use crate::profile::config::MapConfig;
use std::collections::BTreeMap;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub(crate) struct TaskOptions {
    /// Stop a task that runs longer than DURATION (90, 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = positive_seconds)]
    pub timeout: Option<f64>,
    #[command(flatten)]
    pub needs: NeedOptions,
    /// Accept the map even if no node has such resources now, for example because engines are still to come
    #[arg(long, help_heading = "Resources")]
    pub wait_for_resources: bool,
    /// Expect a task to take at most DURATION: engines whose job ends earlier do not get it [default: that of --timeout]
    #[arg(long, value_name = "DURATION", value_parser = positive_seconds)]
    pub time: Option<f64>,
    /// Run before maps with a lower priority; `pcluster priority` changes it later
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Run at most N tasks of this map at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_running: Option<u32>,
    /// Retry a failed task up to N times
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retries: u32,
    /// Retry a task whose worker or engine died up to N times
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_crashes: u32,
    /// Retry a task that had too little memory with FACTOR times what it asked for (x1.5), up to 10 times; needs --mem
    #[arg(long, value_name = "FACTOR")]
    pub retry_mem: Option<Growth>,
    /// Ask for at most SIZE with --retry-mem [default: what the largest node has]
    #[arg(long, value_name = "SIZE")]
    pub max_mem: Option<Memory>,
    /// Retry a task that ran into its --timeout with FACTOR times as much (x1.5), up to 10 times
    #[arg(long, value_name = "FACTOR")]
    pub retry_time: Option<Growth>,
    /// Let a task run for at most DURATION with --retry-time
    #[arg(long, value_name = "DURATION", value_parser = positive_seconds)]
    pub max_time: Option<f64>,
    /// Name the map in listings [default: the function or the command]
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Label the map, for pcluster results --label TEXT
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Run tasks in this directory [default: the current one if it exists on the engine, else the engine's]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable of the tasks; K alone copies its current value
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Start when MAP has finished; abort if any of its tasks failed
    #[arg(long, value_name = "MAP")]
    pub after: Option<MapId>,
}

impl TaskOptions {
    /// `defaults` are those of the profile. An error if a resource is given twice, or a retry asks for more of nothing.
    pub(crate) fn to_map_options(&self, defaults: &MapConfig) -> Result<MapOptions, String> {
        let request = self.needs.request(defaults)?;
        let options = MapOptions {
            name: self.name.clone(),
            label: self.label.clone(),
            timeout_s: self.timeout,
            resources: request.resources,
            time_s: self.time,
            priority: self.priority,
            max_running: self.max_running,
            wait_for_resources: self.wait_for_resources,
            mem_bytes: Some(request.mem_bytes).filter(|bytes| *bytes > 0),
            retries: self.retries,
            max_crashes: self.max_crashes,
            retry_mem: self.retry_mem,
            max_mem_bytes: self.max_mem.map(|memory| memory.bytes),
            retry_time: self.retry_time,
            max_time_s: self.max_time,
            cwd: self.cwd.as_deref().map(absolute),
            directory: current_directory(),
            env: BTreeMap::from_iter(self.env.iter().cloned()),
            reduces: None,
            after: self.after,
            targets: None,
            interactive: false,
            process: Default::default(),
        };
        options.check_retries()?;
        Ok(options)
    }
}

/// The absolute path of a working directory; `~` is expanded by the engines.
fn absolute(directory: &str) -> String {
    let absolute = std::path::absolute(directory).ok().filter(|_| !directory.starts_with('~'));
    let text = absolute.and_then(|path| path.into_os_string().into_string().ok());
    text.unwrap_or_else(|| directory.to_string())
}

/// The current directory, if its name is UTF-8.
pub(crate) fn current_directory() -> Option<String> {
    std::env::current_dir().ok()?.into_os_string().into_string().ok()
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_string()),
        None => (
            text,
            std::env::var(text).map_err(|_| format!("{text} is not set in this environment; write {text}=value"))?,
        ),
    };
    match name {
        "" => Err("must be NAME=value".into()),
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
        assert!(
            variable("PCLUSTER_NO_SUCH_VARIABLE")
                .unwrap_err()
                .contains("is not set in this environment")
        );
        assert_eq!(positive_seconds("1.5m"), Ok(90.0));
        assert!(positive_seconds("0").is_err() && positive_seconds("soon").is_err());
    }
}
