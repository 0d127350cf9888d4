//! The source of each value of a configuration.
use super::{Config, ConfigError};
use serde_yaml::Value;
use std::collections::BTreeMap;

/// A value and its source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Dotted: `launchers.slurm.queue`.
    pub key: String,
    pub value: Value,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    /// The line of `pcluster.yaml`, from 1.
    File(usize),
    /// `--set`, or an option that stands for it.
    Setting(String),
}

/// A setting and the option that set it (`--set`, `--queue`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub key: String,
    /// YAML.
    pub value: String,
    pub by: String,
}

/// Every value of the configuration from the file's text and the settings, in the order of the sections.
pub(crate) fn explain(text: &str, settings: &[Setting]) -> Result<Vec<Entry>, ConfigError> {
    let pairs: Vec<(String, String)> = settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
    let config = Config::parse(text, &pairs)?;
    let mut entries = Vec::new();
    if let Ok(tree) = serde_yaml::to_value(&config) {
        leaves("", &tree, &mut entries);
    }
    let file: Value = serde_yaml::from_str(text).unwrap_or(Value::Null);
    let lines = lines_of(text);
    for entry in &mut entries {
        entry.origin = origin(&entry.key, &file, &lines, settings);
    }
    Ok(entries)
}

fn leaves(path: &str, value: &Value, entries: &mut Vec<Entry>) {
    match value {
        Value::Mapping(mapping) if !mapping.is_empty() => {
            for (key, value) in mapping {
                let key = key.as_str().unwrap_or_default();
                let path = if path.is_empty() {
                    key.to_string()
                } else {
                    format!("{path}.{key}")
                };
                leaves(&path, value, entries);
            }
        }
        _ => entries.push(Entry {
            key: path.to_string(),
            value: value.clone(),
            origin: Origin::Default,
        }),
    }
}

fn origin(key: &str, file: &Value, lines: &BTreeMap<String, usize>, settings: &[Setting]) -> Origin {
    for setting in settings.iter().rev() {
        let below = key.strip_prefix(setting.key.as_str()).and_then(|rest| rest.strip_prefix('.'));
        if setting.key == key {
            return Origin::Setting(setting.by.clone());
        }
        // A whole section was set: keys that it omits are at their defaults.
        if let Some(below) = below {
            let value: Value = serde_yaml::from_str(&setting.value).unwrap_or(Value::Null);
            return match get(&value, below) {
                true => Origin::Setting(setting.by.clone()),
                false => Origin::Default,
            };
        }
    }
    if !get(file, key) {
        return Origin::Default;
    }
    let mut known = key;
    loop {
        if let Some(line) = lines.get(known) {
            return Origin::File(*line);
        }
        match known.rsplit_once('.') {
            Some((above, _)) => known = above,
            None => return Origin::File(1),
        }
    }
}

fn get(tree: &Value, key: &str) -> bool {
    key.split('.').try_fold(tree, |place, part| place.get(part)).is_some()
}

/// The line of each key that begins a line; a key inside braces has the line of their key.
fn lines_of(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        let Some((key, _)) = content.split_once(':') else { continue };
        let key = key.trim().trim_matches(['"', '\'']);
        if content.starts_with(['#', '-']) || key.is_empty() || key.contains([' ', '{', '[']) {
            continue;
        }
        open.retain(|(above, _)| *above < indent);
        let path: Vec<&str> = open.iter().map(|(_, key)| key.as_str()).chain([key]).collect();
        lines.entry(path.join(".")).or_insert(number + 1);
        open.push((indent, key.to_string()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, value: &str, by: &str) -> Setting {
        Setting {
            key: key.into(),
            value: value.into(),
            by: by.into(),
        }
    }

    #[test]
    fn each_value_has_its_source() {
        let text = "# mine\ncontroller:\n  hwm: 3\nlaunchers:\n  slurm:\n    queue: batch\n    env: {A: b}\n  # queue: no\n  sge: {queue: all.q,\n    cpus: 2}\n";
        let settings = [
            setting("launchers.slurm.account", "pi", "--set"),
            setting("launchers.slurm.queue", "short", "--queue"),
            setting("launchers.pbs", "{queue: workq}", "--set"),
        ];
        let entries = explain(text, &settings).unwrap();
        let of = |key: &str| {
            let entry = entries.iter().find(|e| e.key == key).unwrap_or_else(|| panic!("no {key}"));
            (
                serde_yaml::to_string(&entry.value).unwrap().trim().to_string(),
                entry.origin.clone(),
            )
        };
        assert_eq!(of("controller.hwm"), ("3".into(), Origin::File(3)));
        assert_eq!(of("controller.curve"), ("true".into(), Origin::Default));
        assert_eq!(of("launchers.slurm.queue"), ("short".into(), Origin::Setting("--queue".into())));
        assert_eq!(of("launchers.slurm.account"), ("pi".into(), Origin::Setting("--set".into())));
        assert_eq!(of("launchers.slurm.env.A"), ("b".into(), Origin::File(7)));
        assert_eq!(of("launchers.sge.queue"), ("all.q".into(), Origin::File(9)));
        assert_eq!(of("launchers.sge.cpus"), ("2".into(), Origin::File(10)));
        assert_eq!(of("launchers.pbs.queue"), ("workq".into(), Origin::Setting("--set".into())));
        assert_eq!(of("launchers.pbs.cpus"), ("null".into(), Origin::Default));
    }
}
