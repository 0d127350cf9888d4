//! What a site's batch system is to be asked for: one section for each system, `launchers.<system>`.
use super::amounts::{Memory, Walltime};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One section for each launcher that has settings of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchersConfig {
    pub slurm: Resources,
    pub sge: Resources,
    pub pbs: Resources,
    pub lsf: Resources,
    pub htcondor: Resources,
    pub mpi: MpiConfig,
    pub ssh: SshConfig,
}

impl LaunchersConfig {
    /// The section of a batch system; none for another launcher.
    pub fn of(&self, system: &str) -> Option<&Resources> {
        match system {
            "slurm" => Some(&self.slurm),
            "sge" => Some(&self.sge),
            "pbs" => Some(&self.pbs),
            "lsf" => Some(&self.lsf),
            "htcondor" => Some(&self.htcondor),
            _ => None,
        }
    }
}

/// What is asked for. What is not set is left to the site. Amounts are for one engine; a job that holds several asks for as many times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Slurm's partition.
    pub queue: Option<String>,
    /// Account or project.
    pub account: Option<String>,
    pub qos: Option<String>,
    pub walltime: Option<Walltime>,
    /// So many seconds after its warning the system kills a job.
    pub kill_wait_s: Option<u32>,
    pub memory: Option<Memory>,
    pub cpus: Option<u32>,
    pub gpus: Option<u32>,
    /// For one job of all engines: over how many nodes.
    pub nodes: Option<u32>,
    /// Features that a node must have, in the system's own words.
    pub constraint: Option<String>,
    /// Grid Engine's parallel environment for jobs of more than one processor.
    pub parallel_environment: Option<String>,
    pub reservation: Option<String>,
    pub mail_user: Option<String>,
    /// When to send mail, in the system's own words.
    pub mail_type: Option<String>,
    /// Further directives, as they stand in a script but without its prefix (`--exclusive`).
    pub directives: Vec<String>,
    /// Environment modules to load.
    pub modules: Vec<String>,
    /// Shell lines before the engine starts.
    pub before: Vec<String>,
    /// Environment variables of the job.
    pub env: BTreeMap<String, String>,
    pub engines_per_job: Option<u32>,
    /// How an engine set becomes jobs.
    pub start: StartMode,
    /// A template instead of pcluster's: a file, looked for in the profile's directory.
    pub template: Option<String>,
}

/// How an engine set becomes jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// An array of jobs.
    #[default]
    Array,
    /// One job whose engines `srun` starts (Slurm alone).
    Srun,
    /// One job whose engines `mpiexec` starts.
    Mpiexec,
}

/// How `mpiexec` is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MpiConfig {
    /// The program.
    pub command: String,
    /// Its arguments before the engine's, besides `-n`.
    pub arguments: Vec<String>,
}

impl Default for MpiConfig {
    fn default() -> Self {
        MpiConfig {
            command: "mpiexec".into(),
            arguments: Vec::new(),
        }
    }
}

/// Engines on other hosts, by ssh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshConfig {
    pub hosts: Vec<SshHost>,
    /// How many hosts are logged in to at the same time.
    pub parallelism: usize,
    /// With so many engines a start is a success; by default all that are asked for.
    pub min_engines: Option<u32>,
    /// Whether engines reach the controller through a reverse tunnel.
    pub tunnel: TunnelMode,
}

/// Whether the engines of a host reach the controller through a reverse tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelMode {
    /// Where they do not reach it otherwise, which is tried first.
    #[default]
    Auto,
    Always,
    Never,
}

impl Default for SshConfig {
    fn default() -> Self {
        SshConfig {
            hosts: Vec::new(),
            parallelism: 16,
            min_engines: None,
            tunnel: TunnelMode::Auto,
        }
    }
}

impl SshConfig {
    /// How many engines the hosts are for, one that does not say it for one; none without hosts.
    pub fn engines(&self) -> Option<u32> {
        let all = self.hosts.iter().map(|host| host.engines.unwrap_or(1));
        (!self.hosts.is_empty()).then(|| all.fold(0, u32::saturating_add))
    }

    pub fn tunnel_of(&self, host: &SshHost) -> TunnelMode {
        host.tunnel.unwrap_or(self.tunnel)
    }

    /// Whether no engine is to reach the controller over the network.
    pub fn only_tunnels(&self) -> bool {
        let always = |host: &SshHost| self.tunnel_of(host) == TunnelMode::Always;
        !self.hosts.is_empty() && self.hosts.iter().all(always)
    }

    /// Whether an engine on one of the hosts could be left without a way to a controller that only its own host reaches.
    pub fn needs_network(&self) -> bool {
        self.hosts.iter().any(|host| self.tunnel_of(host) == TunnelMode::Never)
    }
}

/// A host for engines: `node1:4`, or a mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SshHost {
    /// As ssh takes it.
    pub host: String,
    /// How many at most; without it, any number.
    pub engines: Option<u32>,
    pub python: Option<String>,
    /// The directory that they start in.
    pub directory: Option<String>,
    /// Environment variables of the engines.
    pub env: BTreeMap<String, String>,
    /// Instead of what holds for all hosts.
    pub tunnel: Option<TunnelMode>,
}

impl SshHost {
    /// `node1`, `user@node1:4`, `ssh://user@node1:2222`, `ssh://user@node1:2222:4`.
    pub fn parse(text: &str) -> Result<SshHost, String> {
        let address = text.strip_prefix("ssh://");
        // Of an IPv6 address the last number is no count.
        let may_count = match (address, text.matches(':').count()) {
            (None, colons) => colons == 1,
            (Some(_), colons) => colons == 3,
        };
        let (host, engines) = match text.rsplit_once(':').filter(|_| may_count) {
            None => (text, None),
            Some((host, count)) => match count.parse() {
                Ok(0) | Err(_) => return Err(format!("{text:?}: after the colon stands how many engines, for example node1:4")),
                Ok(count) => (host, Some(count)),
            },
        };
        if host.is_empty() {
            return Err(format!("{text:?} names no host"));
        }
        Ok(SshHost {
            host: host.into(),
            engines,
            ..SshHost::default()
        })
    }
}

impl<'de> Deserialize<'de> for SshHost {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SshHost, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            host: String,
            #[serde(default)]
            engines: Option<u32>,
            #[serde(default)]
            python: Option<String>,
            #[serde(default)]
            directory: Option<String>,
            #[serde(default)]
            env: BTreeMap<String, String>,
            #[serde(default)]
            tunnel: Option<TunnelMode>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SshHost;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a host, as in node1:4, or a mapping with `host`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<SshHost, E> {
                SshHost::parse(text).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SshHost, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                let parsed = SshHost::parse(&fields.host).map_err(A::Error::custom)?;
                if let Some(name) = fields.env.keys().find(|name| !is_variable(name)) {
                    return Err(A::Error::custom(format!("{name:?} is no name of an environment variable")));
                }
                Ok(SshHost {
                    host: parsed.host,
                    engines: fields.engines.or(parsed.engines),
                    python: fields.python,
                    directory: fields.directory,
                    env: fields.env,
                    tunnel: fields.tunnel,
                })
            }
        }
        from.deserialize_any(Either)
    }
}

fn is_variable(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_word_or_a_mapping() {
        for (text, host, engines) in [
            ("node1", "node1", None),
            ("me@node1:4", "me@node1", Some(4)),
            ("ssh://me@node1:2222", "ssh://me@node1:2222", None),
            ("ssh://me@node1:2222:4", "ssh://me@node1:2222", Some(4)),
            ("me@fd00::1", "me@fd00::1", None),
        ] {
            let parsed = SshHost::parse(text).unwrap();
            assert_eq!((parsed.host.as_str(), parsed.engines), (host, engines), "{text}");
        }
        for text in ["node1:0", "node1:many", ":4", ""] {
            assert!(SshHost::parse(text).is_err(), "{text}");
        }
        let yaml = "hosts: [node1:4, {host: me@node2, engines: 8, python: /opt/python, directory: /scratch, env: {A: b}, tunnel: never}]";
        let config: SshConfig = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(
            (config.engines(), config.hosts[1].python.as_deref()),
            (Some(12), Some("/opt/python"))
        );
        let modes: Vec<TunnelMode> = config.hosts.iter().map(|host| config.tunnel_of(host)).collect();
        assert_eq!(modes, [TunnelMode::Auto, TunnelMode::Never]);
        assert!(config.needs_network() && !config.only_tunnels());
        assert_eq!(
            serde_yaml::from_value::<SshConfig>(serde_yaml::to_value(&config).unwrap()).unwrap(),
            config
        );
        for wrong in [
            "hosts: [4]",
            "hosts: [{host: a, colour: blue}]",
            "hosts: [{host: a, tunnel: perhaps}]",
            "hosts: [{host: a, env: {'a b': c}}]",
        ] {
            assert!(serde_yaml::from_str::<SshConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
