//! `map`: defaults of options of `pcluster map`.
use super::node::{check_name, count};
use crate::model::memory::Memory;
use crate::model::resources::GpuAmount;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MapConfig {
    /// Processors for each task.
    #[serde(deserialize_with = "cpus")]
    pub cpus: u32,
    /// Memory for each task.
    pub mem: Option<Memory>,
    /// GPUs for each task.
    #[serde(serialize_with = "as_number", deserialize_with = "gpus")]
    pub gpus: GpuAmount,
    /// Resources that profiles name, for each task.
    #[serde(deserialize_with = "need")]
    pub need: BTreeMap<String, u64>,
    /// Bind each task to its processors.
    pub pin: bool,
}

impl Default for MapConfig {
    fn default() -> Self {
        MapConfig {
            cpus: 1,
            mem: None,
            gpus: GpuAmount::default(),
            need: BTreeMap::new(),
            pin: false,
        }
    }
}

fn cpus<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match i64::deserialize(from)? {
        cpus @ 1.. => u32::try_from(cpus).map_err(|_| D::Error::custom(format!("{cpus} is too many"))),
        other => Err(D::Error::custom(format!("{other} is not a number of processors greater than 0"))),
    }
}

fn as_number<S: Serializer>(gpus: &GpuAmount, to: S) -> Result<S::Ok, S::Error> {
    match gpus.thousandths % 1000 {
        0 => to.serialize_u32(gpus.thousandths / 1000),
        _ => to.serialize_f64(f64::from(gpus.thousandths) / 1000.0),
    }
}

/// `2`, `0.5`
fn gpus<'de, D: Deserializer<'de>>(from: D) -> Result<GpuAmount, D::Error> {
    struct Amount;
    impl Visitor<'_> for Amount {
        type Value = GpuAmount;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number of GPUs, or a fraction of one such as 0.5")
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<GpuAmount, E> {
            self.visit_str(&value.to_string())
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<GpuAmount, E> {
            self.visit_str(&value.to_string())
        }
        fn visit_f64<E: Error>(self, value: f64) -> Result<GpuAmount, E> {
            self.visit_str(&value.to_string())
        }
        fn visit_str<E: Error>(self, value: &str) -> Result<GpuAmount, E> {
            value.parse().map_err(E::custom)
        }
    }
    from.deserialize_any(Amount)
}

fn need<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let need = BTreeMap::<String, serde_json::Value>::deserialize(from)?;
    let one = |(name, value): (String, serde_json::Value)| {
        check_name(&name).map_err(D::Error::custom)?;
        let count = count(&name, &value.to_string()).map_err(D::Error::custom)?;
        Ok((name, count))
    };
    need.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_defaults_are_errors() {
        for (yaml, message) in [
            ("cpus: 0", "greater than 0"),
            ("cpus: -1", "greater than 0"),
            ("cpus: 1.5", "invalid type"),
            ("mem: 500", "write 500M"),
            ("gpus: 1.5", "fraction of one"),
            ("gpus: -1", "fraction of one"),
            ("need: {gpus: 1}", "write gpus"),
            ("need: {licence: 0}", "greater than 0"),
            ("need: {licence: x}", "not a whole number"),
            ("need: 1", "invalid type"),
            ("colour: blue", "unknown field"),
        ] {
            let error = serde_yaml::from_str::<MapConfig>(yaml).unwrap_err().to_string();
            assert!(error.contains(message), "{yaml}: {error}");
        }
        let config: MapConfig = serde_yaml::from_str("{cpus: 4, gpus: 0.5}").unwrap();
        let again = serde_yaml::from_value(serde_yaml::to_value(&config).unwrap());
        assert_eq!(again.ok(), Some(config));
    }
}
