//! `pcluster.yaml` as structs. Every key has a default; an unknown key is an error that names the nearest known one.
//!
//! Merge order: the defaults below, the profile's file, `--set key=value` in the order given.
pub mod amounts;
pub mod resources;

use super::ProfileDir;
use super::error::{ConfigError, of_setting, of_yaml};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use serde_yaml::{Mapping, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub controller: ControllerConfig,
    pub engine: EngineConfig,
    pub launcher: LauncherConfig,
    /// What each batch system is to be asked for.
    pub launchers: resources::LaunchersConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// The address to listen on; `0.0.0.0` or `*` for all.
    pub ip: String,
    /// The name or address that clients are to use, where `ip` does not tell.
    pub location: Option<String>,
    /// `10101-10116`: the ports to listen on, 16 of them; by default any that are free.
    pub ports: Option<String>,
    /// Encrypt with CURVE.
    pub curve: bool,
    #[serde(deserialize_with = "above_zero")]
    pub heartbeat_ms: u64,
    /// How long an engine may be silent before it counts as lost.
    pub lease_ms: u64,
    pub registration_timeout_ms: u64,
    /// How long an engine looks for a silent controller before it exits.
    pub controller_patience_ms: u64,
    pub durability: Durability,
    /// ipyparallel's word for how balanced tasks are placed: leastload, lru, plainrandom, twobin, weighted.
    #[serde(deserialize_with = "task_scheme")]
    pub task_scheme: String,
    /// How many tasks of ipyparallel's clients an engine may hold at a time; 0 is no bound.
    pub hwm: u32,
    /// About so much work of short tasks is sent to an engine ahead of time.
    pub prefetch_ms: u64,
    /// And never more tasks than this.
    pub most_prefetched: u32,
    /// A peer that sends a longer message loses its connection.
    #[serde(deserialize_with = "above_zero")]
    pub most_message_mb: u64,
    /// Finished maps and requests are forgotten so many days after their end.
    #[serde(deserialize_with = "some_days")]
    pub keep_days: Option<f64>,
    /// What may wait in memory for all peers together; beyond it the one with the most is cut off.
    #[serde(deserialize_with = "above_zero")]
    pub most_waiting_mb: u64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            ip: "127.0.0.1".into(),
            location: None,
            ports: None,
            curve: true,
            heartbeat_ms: 1000,
            lease_ms: 60_000,
            registration_timeout_ms: 30_000,
            controller_patience_ms: 600_000,
            durability: Durability::Normal,
            task_scheme: "leastload".into(),
            hwm: 1,
            prefetch_ms: 50,
            most_prefetched: 1000,
            most_message_mb: 2048,
            keep_days: None,
            most_waiting_mb: 4096,
        }
    }
}

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The end of the controller process.
    Normal,
    /// Also the end of the machine.
    Full,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub kind: EngineKind,
    /// The interpreter of the workers; by default the active virtual environment's, else `python3`.
    pub python: Option<String>,
    /// The command of an `ipengine`, by default `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    /// From SIGINT to SIGTERM, for a task that is to end.
    pub interrupt_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub terminate_ms: u64,
    /// Environment variables of the workers, besides those inherited.
    pub env: BTreeMap<String, String>,
    /// The workers' working directory, by default the engine's.
    pub cwd: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            kind: EngineKind::Pcluster,
            python: None,
            ipengine: None,
            interrupt_ms: 5000,
            terminate_ms: 5000,
            env: BTreeMap::new(),
            cwd: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// pcluster's own.
    Pcluster,
    /// ipyparallel's.
    Ipengine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LauncherConfig {
    /// What starts the controller.
    pub controller: String,
    /// What starts the engines.
    pub engines: String,
    /// How many engines `start` starts; by default one for each processor here.
    pub n: Option<u32>,
    /// How long `start` waits for the controller's connection files.
    pub controller_timeout_ms: u64,
    /// How long `start` waits for all engines to register.
    pub engines_timeout_ms: u64,
    /// How long `stop` waits after asking, before SIGTERM.
    pub stop_ms: u64,
    /// How long `stop` waits after SIGTERM, before SIGKILL.
    pub kill_ms: u64,
    /// A batch system is asked about jobs at most once in so long.
    pub poll_ms: u64,
    /// A command of a batch system may take so long.
    pub command_ms: u64,
}

impl Default for LauncherConfig {
    fn default() -> Self {
        LauncherConfig {
            controller: "local".into(),
            engines: "local".into(),
            n: None,
            controller_timeout_ms: 30_000,
            engines_timeout_ms: 60_000,
            stop_ms: 10_000,
            kill_ms: 5000,
            poll_ms: 10_000,
            command_ms: 60_000,
        }
    }
}

/// ipyparallel's words for how a balanced task finds an engine.
pub const TASK_SCHEMES: [&str; 5] = ["leastload", "lru", "plainrandom", "twobin", "weighted"];

fn task_scheme<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let scheme = String::deserialize(from)?;
    if !TASK_SCHEMES.contains(&scheme.as_str()) {
        return Err(D::Error::unknown_variant(&scheme, &TASK_SCHEMES));
    }
    Ok(scheme)
}

fn some_days<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(from)? {
        Some(days) if !(days > 0.0 && days.is_finite()) => {
            Err(D::Error::invalid_value(Unexpected::Float(days), &"a number of days above 0"))
        }
        days => Ok(days),
    }
}

fn above_zero<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"a whole number above 0")),
        number => Ok(number),
    }
}

impl Config {
    /// What the profile's `pcluster.yaml` says over the defaults; the defaults where there is no such file.
    pub fn load(profile: &ProfileDir) -> Result<Config, ConfigError> {
        Config::load_with(profile, &[])
    }

    /// The same, with `--set key=value` over it. A key is spelled with points (`controller.hwm`), a value is YAML.
    pub fn load_with(profile: &ProfileDir, settings: &[(String, String)]) -> Result<Config, ConfigError> {
        let path = profile.config_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        Config::parse(&text, settings).map_err(|e| e.in_file(&path))
    }

    /// From a text instead of a file.
    pub fn parse(text: &str, settings: &[(String, String)]) -> Result<Config, ConfigError> {
        // A file of comments alone is null to YAML.
        let config = serde_yaml::from_str::<Option<Config>>(text)
            .map_err(|e| of_yaml(text, &e))?
            .unwrap_or_default();
        let mut tree = serde_yaml::to_value(&config).map_err(|e| of_yaml(text, &e))?;
        let mut config = config;
        for (key, value) in settings {
            let parsed: Value = serde_yaml::from_str(value).map_err(|e| of_setting(key, value, &e))?;
            set(&mut tree, key, parsed);
            config = serde_yaml::from_value(tree.clone()).map_err(|e| of_setting(key, value, &e))?;
        }
        config.agrees()
    }

    /// What no key can tell alone.
    fn agrees(self) -> Result<Config, ConfigError> {
        let (heartbeat, lease) = (self.controller.heartbeat_ms, self.controller.lease_ms);
        if lease <= heartbeat {
            return Err(ConfigError::Contradiction {
                message: format!("controller.lease_ms ({lease}) must be more than controller.heartbeat_ms ({heartbeat})"),
            });
        }
        Ok(self)
    }
}

/// Puts a value at a key spelled with points; what is missing on the way is made, to be refused with the whole.
fn set(tree: &mut Value, key: &str, value: Value) {
    let mut place = tree;
    for part in key.split('.') {
        if !place.is_mapping() {
            *place = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(mapping) = place else { return };
        place = mapping.entry(Value::from(part)).or_insert(Value::Null);
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::EXAMPLE_CONFIG;

    fn error(text: &str) -> String {
        let e = Config::parse(text, &[]).unwrap_err().in_file(std::path::Path::new("pcluster.yaml"));
        let hint = e.hint().map(|h| format!("\nhint: {h}")).unwrap_or_default();
        format!("{e}{hint}")
    }
    fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }
    fn setting_error(key: &str, value: &str) -> String {
        let e = Config::parse("", &settings(&[(key, value)])).unwrap_err();
        let hint = e.hint().map(|h| format!("\nhint: {h}")).unwrap_or_default();
        format!("{e}{hint}")
    }

    /// The example with its settings, but not its comments, made real.
    fn uncommented() -> String {
        let mut text = String::new();
        for line in EXAMPLE_CONFIG.lines() {
            match line.trim_start().strip_prefix('#') {
                Some(rest) if rest.starts_with(' ') && !rest.starts_with("  ") || rest.is_empty() => {}
                Some(setting) if line.starts_with('#') && !setting.starts_with("    ") => text.push_str(&format!("{setting}\n")),
                _ => {}
            }
        }
        text
    }

    #[test]
    fn the_example_as_it_is_changes_nothing() {
        assert_eq!(Config::parse(EXAMPLE_CONFIG, &[]).unwrap(), Config::default());
        assert_eq!(Config::parse("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_example_uncommented_has_every_key_at_its_default() {
        let example: Value = serde_yaml::from_str(&uncommented()).unwrap();
        assert_eq!(example, serde_yaml::to_value(Config::default()).unwrap());
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let config = Config::parse(
            "controller: {hwm: 3, durability: full}\nengine:\n  kind: ipengine\n  env: {A: b}\n",
            &[],
        )
        .unwrap();
        assert_eq!((config.controller.hwm, config.controller.durability), (3, Durability::Full));
        assert_eq!(config.engine.kind, EngineKind::Ipengine);
        assert_eq!(config.engine.env["A"], "b");
        assert_eq!(config.launcher, LauncherConfig::default());
    }

    #[test]
    fn settings_outrank_the_file_and_later_ones_earlier_ones() {
        let given = settings(&[
            ("controller.hwm", "4"),
            ("controller.hwm", "5"),
            ("engine.env.X", "'1'"),
            ("engine.python", "/usr/bin/python3"),
        ]);
        let config = Config::parse("controller: {hwm: 3, curve: false}", &given).unwrap();
        assert_eq!(config.controller.hwm, 5);
        assert!(!config.controller.curve);
        assert_eq!(config.engine.env["X"], "1");
        assert_eq!(config.engine.python.as_deref(), Some("/usr/bin/python3"));
    }

    #[test]
    fn a_mistyped_key_is_shown_with_the_nearest_one() {
        insta::assert_snapshot!(error("controller:\n  curve: true\n  hartbeat_ms: 5\n"), @r#"
        pcluster.yaml:3:3: controller: unknown key `hartbeat_ms`
          3 |   hartbeat_ms: 5
            |   ^
        hint: did you mean `heartbeat_ms`?
        "#);
        insta::assert_snapshot!(error("controler: {}\n"), @r#"
        pcluster.yaml:1:1: unknown key `controler`
          1 | controler: {}
            | ^
        hint: did you mean `controller`?
        "#);
        insta::assert_snapshot!(error("engine:\n  quux: 1\n"), @r#"
        pcluster.yaml:2:3: engine: unknown key `quux`
          2 |   quux: 1
            |   ^
        hint: known here: kind, python, ipengine, interrupt_ms, terminate_ms, env, cwd
        "#);
    }

    #[test]
    fn a_wrong_value_or_broken_yaml_is_shown_where_it_is() {
        insta::assert_snapshot!(error("controller:\n  hwm: many\n"), @r#"
        pcluster.yaml:2:8: controller.hwm: invalid type: string "many", expected a whole number
          2 |   hwm: many
            |        ^
        "#);
        insta::assert_snapshot!(error("controller:\n  durability: ful\n"), @r#"
        pcluster.yaml:2:15: controller.durability: unknown value `ful`
          2 |   durability: ful
            |               ^
        hint: did you mean `full`?
        "#);
        insta::assert_snapshot!(error("controller:\n  hwm: [1\nengine: {}\n"), @r#"
        pcluster.yaml:2:8: controller.hwm: invalid type: sequence, expected a whole number
          2 |   hwm: [1
            |        ^
        "#);
        insta::assert_snapshot!(error("controller:\n\thwm: 1\n"), @r#"
        pcluster.yaml:2:1: found character that cannot start any token
          2 | 	hwm: 1
            | ^
        hint: YAML is indented with spaces, never with tabs; a value with special characters needs quotes
        "#);
        insta::assert_snapshot!(error("- a list\n"), @r#"
        pcluster.yaml:1:1: invalid type: sequence, expected `key: value` lines
          1 | - a list
            | ^
        "#);
        insta::assert_snapshot!(error("controller: {hwm: 1}\ncontroller: {hwm: 2}\n"), @r#"
        pcluster.yaml:1:1: duplicate field `controller`
          1 | controller: {hwm: 1}
            | ^
        "#);
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        insta::assert_snapshot!(error("controller: {task_scheme: leastlod}\n"), @r#"
        pcluster.yaml:1:13: controller: unknown value `leastlod`
          1 | controller: {task_scheme: leastlod}
            |             ^
        hint: did you mean `leastload`?
        "#);
        insta::assert_snapshot!(error("controller:\n  heartbeat_ms: 0\n"), @r#"
        pcluster.yaml:2:3: controller: invalid value: integer `0`, expected a whole number above 0
          2 |   heartbeat_ms: 0
            |   ^
        "#);
        insta::assert_snapshot!(error("controller: {lease_ms: 500}\n"), @r#"controller.lease_ms (500) must be more than controller.heartbeat_ms (1000)"#);
        // Together they are fine.
        let given = settings(&[("controller.lease_ms", "500"), ("controller.heartbeat_ms", "100")]);
        assert_eq!(Config::parse("", &given).unwrap().controller.lease_ms, 500);
    }

    /// Rows `| `key` | `default` | …` of the page.
    #[test]
    fn the_page_has_every_key_with_its_default_and_no_other() {
        let page = include_str!("../../../docs/configuration.md");
        let mut described = BTreeMap::new();
        for line in page.lines() {
            let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            if let ["", key, default, _, _, ""] = cells[..]
                && key.contains('.')
            {
                described.insert(key.to_string(), default.to_string());
            }
        }
        let Value::Mapping(sections) = serde_yaml::to_value(Config::default()).unwrap() else {
            panic!()
        };
        let mut known = BTreeMap::new();
        for (section, keys) in &sections {
            for (key, default) in keys.as_mapping().unwrap() {
                let name = format!("{}.{}", section.as_str().unwrap(), key.as_str().unwrap());
                known.insert(name, serde_yaml::to_string(default).unwrap().trim().to_string());
            }
        }
        assert_eq!(described, known);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        insta::assert_snapshot!(setting_error("controller.hwn", "4"), @r#"
        --set controller.hwn=4: unknown key `hwn`
        hint: did you mean `hwm`?
        "#);
        insta::assert_snapshot!(setting_error("controller.hwm", "four"), @r#"--set controller.hwm=four: invalid type: string "four", expected a whole number"#);
        insta::assert_snapshot!(setting_error("controller.hwm", "[4"), @r#"--set controller.hwm=[4: did not find expected ',' or ']'"#);
        insta::assert_snapshot!(setting_error("hwm", "4"), @r#"
        --set hwm=4: unknown key `hwm`
        hint: `hwm` belongs under `controller:` (`controller.hwm`); is that line there, and not a comment?
        "#);
        insta::assert_snapshot!(setting_error("", "4"), @r#"
        --set =4: unknown key ``
        hint: known here: controller, engine, launcher
        "#);
    }
}
