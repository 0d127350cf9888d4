//! `pcluster.yaml` as structs. Every key has a default; an unknown key is an error that names the nearest known one.
//!
//! Parts: `sections` (controller, engine, launcher), [`resources`] (one section for each batch system), [`amounts`] (times),
//! [`node`] (what engines report of their node), `map` (defaults of options), [`elastic`] (how many engines there are), [`origins`] (the source of each value).
//!
//! Merge order: the defaults, the profile's file, `--set key=value` in the order given.
pub(crate) mod amounts;
pub(crate) mod elastic;
mod map;
pub(crate) mod node;
pub(crate) mod origins;
pub(crate) mod resources;
mod sections;

pub(crate) use map::MapConfig;
pub use sections::ControllerConfig;
pub(crate) use sections::{Durability, EngineConfig, EngineKind, LauncherConfig};

use super::ProfileDir;
use super::error::{ConfigError, of_setting, of_yaml, shortened};
use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub controller: ControllerConfig,
    pub engine: EngineConfig,
    pub launcher: LauncherConfig,
    /// What to request from each batch system.
    pub launchers: resources::LaunchersConfig,
    pub map: map::MapConfig,
    /// How many engines there are, if the work decides.
    pub elastic: elastic::ElasticConfig,
}

impl Config {
    /// The profile's `pcluster.yaml` merged over the defaults; the defaults if there is no such file.
    pub fn load(profile: &ProfileDir) -> Result<Config, ConfigError> {
        Config::load_with(profile, &[])
    }

    /// The same, merged with `--set key=value`. Keys are dotted (`controller.hwm`), values are YAML.
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
        check_nesting(text).map_err(|message| ConfigError::Yaml {
            path: PathBuf::new(),
            position: None,
            message,
            hint: None,
        })?;
        // A file of comments alone is null to YAML.
        let config = serde_yaml::from_str::<Option<Config>>(text)
            .map_err(|e| of_yaml(text, &e))?
            .unwrap_or_default();
        let mut tree = serde_yaml::to_value(&config).map_err(|e| of_yaml(text, &e))?;
        let mut config = config;
        for (key, value) in settings {
            check_nesting(value).map_err(|message| ConfigError::Setting {
                setting: shortened(&format!("{key}={value}"), 0),
                message,
                hint: None,
            })?;
            let parsed: Value = serde_yaml::from_str(value).map_err(|e| of_setting(key, value, &e))?;
            set(&mut tree, key, parsed);
            config = serde_yaml::from_value(tree.clone()).map_err(|e| of_setting(key, value, &e))?;
        }
        config.checked()
    }

    /// Checks constraints between keys.
    fn checked(self) -> Result<Config, ConfigError> {
        let (heartbeat, lease) = (self.controller.heartbeat_interval_ms, self.controller.lease_ms);
        if lease <= heartbeat {
            return Err(ConfigError::Contradiction {
                message: format!("controller.lease_ms ({lease}) must be greater than controller.heartbeat_interval_ms ({heartbeat})"),
            });
        }
        if let Some(key) = self.elastic.is_without_max() {
            return Err(ConfigError::Contradiction {
                message: format!("elastic.{key} needs elastic.max, the maximum number of engines (--max)"),
            });
        }
        Ok(self)
    }
}

/// The maximum nesting: YAML parsers need unbounded time or stack for deeply nested input.
const MAX_DEPTH: usize = 100;

/// Counts brackets, even in strings, and leading dashes and question marks of a line.
fn check_nesting(text: &str) -> Result<(), String> {
    let mut depth = 0usize;
    for (number, line) in text.lines().enumerate() {
        let mut markers = line.bytes().take_while(|b| b" -?".contains(b)).filter(|b| *b != b' ').count();
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => continue,
            }
            markers = markers.max(depth);
        }
        if markers > MAX_DEPTH {
            return Err(format!("line {} is nested in more than {MAX_DEPTH} levels", number + 1));
        }
    }
    Ok(())
}

/// Sets the value of a dotted key; creates missing sections, which are validated later.
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
mod tests;
