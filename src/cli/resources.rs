//! Options for the resources of batch jobs; each is a setting of the selected launcher.
use super::CommandError;
use super::commands::setting;
use crate::launchers::batch;
use crate::model::memory::Memory;
use crate::profile::config::amounts::Walltime;
use crate::profile::config::node;
use crate::profile::config::origins::Setting;
use crate::profile::{Config, ProfileDir};
use std::path::PathBuf;

/// Requested resources of batch jobs, shared by `start`, `engines add` and `script`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Batch systems")]
pub(crate) struct ResourceArgs {
    /// Submit to this queue or partition
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
    /// Charge this account or project
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Limit each job to this time: 1:30:00, 90m, 36h, 2d; a bare number is minutes
    #[arg(long, value_name = "TIME")]
    pub walltime: Option<Walltime>,
    /// Request this much memory per engine: 4G, 512M
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<Memory>,
    /// Request N processors per engine
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Request N GPUs per engine
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// Run N engines in each job, on one node
    #[arg(long, value_name = "N")]
    pub engines_per_job: Option<u32>,
    /// Use this template instead of the profile's or pcluster's own
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

impl ResourceArgs {
    /// The options as settings of this launcher; an error if it does not use them.
    pub(crate) fn settings(&self, launcher: &str) -> Result<Vec<(String, String)>, CommandError> {
        let given: Vec<(&str, &str, String)> = self.given();
        if let Some((_, option, _)) = given.first()
            && !batch::SYSTEMS.contains(&launcher)
        {
            return Err(CommandError::usage(format!(
                "{option} is for batch systems ({}); the engines' launcher is {launcher}",
                batch::SYSTEMS.join(", ")
            )));
        }
        Ok(given
            .into_iter()
            .map(|(key, _, value)| (format!("launchers.{launcher}.{key}"), value))
            .collect())
    }

    /// Key, option, and YAML value of each given option.
    pub(crate) fn given(&self) -> Vec<(&'static str, &'static str, String)> {
        // Quoted, so that a string of digits stays a string.
        let text = |value: &Option<String>| value.as_ref().map(|v| format!("{v:?}"));
        // Relative to the current directory; in settings, relative to the profile's directory.
        let template = self.template.as_ref().map(|path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("{:?}", path.to_string_lossy())
        });
        let all = [
            ("queue", "--queue", text(&self.queue)),
            ("account", "--account", text(&self.account)),
            ("walltime", "--walltime", self.walltime.map(|v| format!("\"{v}\""))),
            ("memory", "--mem", self.mem.map(|v| v.to_string())),
            ("cpus", "--cpus", self.cpus.map(|v| v.to_string())),
            ("gpus", "--gpus", self.gpus.map(|v| v.to_string())),
            ("engines_per_job", "--engines-per-job", self.engines_per_job.map(|v| v.to_string())),
            ("template", "--template", template),
        ];
        all.into_iter()
            .filter_map(|(key, option, value)| Some((key, option, value?)))
            .collect()
    }
}

/// What nodes have, for commands that start engines.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NodeArgs {
    /// Set a resource of each node, instead of what engines detect or for tasks that need it: gpus=4, mem=64G, licence=2
    #[arg(long = "resource", value_name = "NAME=VALUE", value_parser = node::setting, help_heading = None::<&str>)]
    resources: Vec<(String, String)>,
}

impl NodeArgs {
    /// The settings of `engine.resources`; an error if one is given twice.
    pub(crate) fn settings(&self) -> Result<&[(String, String)], CommandError> {
        let all = &self.resources;
        let mut names = all.iter().map(|(key, _)| key).enumerate();
        match names.find(|(at, key)| all[..*at].iter().any(|(other, _)| other == *key)) {
            Some((_, key)) => {
                let name = key.rsplit('.').next().unwrap_or_default();
                Err(CommandError::usage(format!("--resource {name}=… is given twice")))
            }
            None => Ok(all),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }
}

/// Overrides of the profile's configuration, for commands that start nothing.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SettingArgs {
    /// Start the engines with this launcher: local, mpi, slurm, sge, pbs, lsf, htcondor
    #[arg(long, value_name = "NAME")]
    pub launcher: Option<String>,
    /// Override a setting of pcluster.yaml, for example launchers.slurm.queue=long
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
    #[command(flatten)]
    pub nodes: NodeArgs,
    #[command(flatten)]
    pub resources: ResourceArgs,
}

impl SettingArgs {
    /// The settings, each with what gave it, and the configuration that they make with the profile's file.
    pub(crate) fn config(&self, profile: &ProfileDir) -> Result<(Vec<Setting>, Config), CommandError> {
        let setting = |key: &str, value: &str, by: &str| Setting {
            key: key.into(),
            value: value.into(),
            by: by.into(),
        };
        let mut settings: Vec<Setting> = self.settings.iter().map(|(key, value)| setting(key, value, "--set")).collect();
        if let Some(launcher) = &self.launcher {
            settings.push(setting("launcher.engines", &format!("{launcher:?}"), "--launcher"));
        }
        settings.extend(self.nodes.settings()?.iter().map(|(key, value)| setting(key, value, "--resource")));
        let load = |settings: &[Setting]| {
            let pairs: Vec<_> = settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
            Config::load_with(profile, &pairs)
        };
        let config = load(&settings)?;
        let given = self.resources.settings(&config.launcher.engines)?;
        if given.is_empty() {
            return Ok((settings, config));
        }
        let options = self.resources.given();
        let options = given.iter().zip(&options);
        settings.extend(options.map(|((key, value), (_, option, _))| setting(key, value, option)));
        let config = load(&settings)?;
        Ok((settings, config))
    }
}
