//! Options for what tasks need of their node, shared by `map`, `apply`, `exec` and `run`.
use crate::model::memory::Memory;
use crate::model::resources::{GpuAmount, Request, TaskResources};
use crate::profile::config::MapConfig;
use crate::profile::config::node::{self, is_resource_name, misspelt};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Resources")]
pub(crate) struct NeedOptions {
    /// Reserve N processors of its node for each task; sets OMP_NUM_THREADS and the like [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// Reserve this much memory for each task, and kill one that uses more (500M, 2G; none: no limit); this counts as a crash
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub mem: Option<Memory>,
    /// Reserve N GPUs for each task, or a fraction of one that tasks share (0.5); sets CUDA_VISIBLE_DEVICES
    #[arg(long, value_name = "N")]
    pub gpus: Option<GpuAmount>,
    /// Reserve N of a resource that profiles define (engine.resources) for each task (none: nothing of what the profile's map.need says)
    #[arg(long, value_name = "NAME=N", value_parser = need)]
    pub need: Vec<(String, u64)>,
    /// Bind each task to its processors, near its GPUs; no other pinned task of the node gets them
    #[arg(long, value_name = "WHETHER", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub pin: Option<bool>,
}

impl NeedOptions {
    /// What each task asks for; an error if a resource is given twice.
    pub(crate) fn request(&self, defaults: &MapConfig) -> Result<Request, String> {
        let mut names = self.need.iter().map(|(name, _)| name).enumerate();
        if let Some((_, name)) = names.find(|(at, name)| self.need[..*at].iter().any(|(other, _)| other == *name)) {
            return Err(format!("--need {name}=… is given twice"));
        }
        let mut named: BTreeMap<String, u64> = BTreeMap::new();
        if !self.need.iter().any(|(name, _)| name == NONE) {
            named.extend(defaults.need.clone());
        }
        named.extend(self.need.iter().filter(|(name, _)| name != NONE).cloned());
        Ok(Request {
            resources: TaskResources {
                cpus: self.cpus.unwrap_or(defaults.cpus),
                gpus: self.gpus.unwrap_or(defaults.gpus),
                named,
                pin: self.pin.unwrap_or(defaults.pin),
            },
            mem_bytes: self.mem.or(defaults.mem).map_or(0, |memory| memory.bytes),
        })
    }
}

/// In place of a default of the profile.
const NONE: &str = "none";

fn memory(text: &str) -> Result<Memory, String> {
    match text {
        NONE => Ok(Memory { bytes: 0 }),
        _ => text.parse(),
    }
}

fn need(text: &str) -> Result<(String, u64), String> {
    if text == NONE {
        return Ok((NONE.into(), 0));
    }
    let (name, count) = text.split_once('=').ok_or("must be NAME=N, for example licence=1")?;
    match misspelt(name) {
        Some(right) => Err(format!("use --{right}")),
        None if !is_resource_name(name) => Err(format!("{name:?} is not a name of a resource")),
        None => node::count(name, count).map(|count| (name.into(), count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_resources_have_a_number() {
        assert_eq!(need("licence=2"), Ok(("licence".into(), 2)));
        let error = need("licence=18446744073709551616").unwrap_err();
        assert_eq!(error, "licence: 18446744073709551616 is more than 1000000000000000");
        for bad in ["licence", "licence=0", "licence=-1", "licence=x", "=1", "gpus=1", "GPU=1", "a b=1"] {
            assert!(need(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_win_over_the_profile() {
        let profile: MapConfig = serde_yaml::from_str("{cpus: 4, mem: 2G, gpus: 0.5, need: {licence: 1, tape: 1}, pin: true}").unwrap();
        let none = NeedOptions::default();
        assert_eq!(none.request(&MapConfig::default()), Ok(Request::default()));
        let shown = |options: &NeedOptions| options.request(&profile).unwrap().to_string();
        assert_eq!(shown(&none), "4 cpus to pin, 2G, 0.5 gpu, 1 licence, 1 tape");
        let all = NeedOptions {
            cpus: Some(1),
            mem: Some("1G".parse().unwrap()),
            gpus: Some(GpuAmount::default()),
            need: vec![("licence".into(), 3)],
            pin: Some(false),
        };
        assert_eq!(shown(&all), "1 cpu, 1G, 3 licence, 1 tape");
        let without = NeedOptions {
            mem: Some(memory("none").unwrap()),
            need: vec![need("none").unwrap(), need("tape=2").unwrap()],
            ..all
        };
        assert_eq!(shown(&without), "1 cpu, 2 tape");
    }
}
