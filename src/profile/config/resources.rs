//! Resources of batch jobs: one section for each system, `launchers.<system>`.
use super::amounts::Walltime;
use crate::model::memory::Memory;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One section for each launcher with its own settings.
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
    /// The section of a batch system; None for other launchers.
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

/// Requested resources; the site's defaults apply to unset ones. Amounts are per engine; a job with several engines multiplies them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Slurm's partition.
    pub queue: Option<String>,
    /// Account or project.
    pub account: Option<String>,
    pub qos: Option<String>,
    pub walltime: Option<Walltime>,
    /// The number of seconds after its warning that the system kills a job.
    pub kill_wait_s: Option<u32>,
    pub memory: Option<Memory>,
    pub cpus: Option<u32>,
    pub gpus: Option<u32>,
    /// The number of nodes of a job that holds all engines.
    pub nodes: Option<u32>,
    /// Required node features, in the system's own syntax.
    pub constraint: Option<String>,
    /// Grid Engine's parallel environment for jobs of more than one processor.
    pub parallel_environment: Option<String>,
    pub reservation: Option<String>,
    pub mail_user: Option<String>,
    /// When to send mail, in the system's own syntax.
    pub mail_type: Option<String>,
    /// Further directives, without their prefix (`--exclusive`).
    pub directives: Vec<String>,
    /// Environment modules to load.
    pub modules: Vec<String>,
    /// Shell commands to run before the engine starts.
    pub before: Vec<String>,
    /// Environment variables of the job.
    pub env: BTreeMap<String, String>,
    pub engines_per_job: Option<u32>,
    /// How engines are submitted.
    pub start: StartMode,
    /// The user's template: a path, relative to the profile's directory.
    pub template: Option<String>,
}

/// How engines are submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// One array job.
    #[default]
    Array,
    /// One job in which `srun` starts the engines (Slurm only).
    Srun,
    /// One job in which `mpiexec` starts the engines.
    Mpiexec,
}

impl StartMode {
    /// As in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            StartMode::Array => "array",
            StartMode::Srun => "srun",
            StartMode::Mpiexec => "mpiexec",
        }
    }
}

/// The `mpiexec` command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MpiConfig {
    /// The program.
    pub command: String,
    /// Arguments inserted before the engine's, in addition to `-n`.
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

/// Engines on remote hosts, by ssh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshConfig {
    pub hosts: Vec<SshHost>,
    /// The number of hosts to log in to in parallel.
    pub parallelism: usize,
    /// The minimum number of engines for a successful start; default: all.
    pub min_engines: Option<u32>,
    /// Whether engines connect through a reverse tunnel.
    pub tunnel: TunnelMode,
}

/// Whether the engines of a host connect to the controller through a reverse tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelMode {
    /// If they cannot reach it directly, which is tried first.
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
    /// The total number of engines, one for a host without a number; None without hosts.
    pub fn engines(&self) -> Option<u32> {
        let all = self.hosts.iter().map(|host| host.engines.unwrap_or(1));
        (!self.hosts.is_empty()).then(|| all.fold(0, u32::saturating_add))
    }

    pub fn tunnel_of(&self, host: &SshHost) -> TunnelMode {
        host.tunnel.unwrap_or(self.tunnel)
    }

    /// Whether all engines use reverse tunnels.
    pub fn only_tunnels(&self) -> bool {
        let always = |host: &SshHost| self.tunnel_of(host) == TunnelMode::Always;
        !self.hosts.is_empty() && self.hosts.iter().all(always)
    }

    /// Whether an engine on one of the hosts needs a controller that listens on the network.
    pub fn needs_network(&self) -> bool {
        self.hosts.iter().any(|host| self.tunnel_of(host) == TunnelMode::Never)
    }
}

/// A host for engines: `node1:4`, or a mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SshHost {
    /// The destination for ssh.
    pub host: String,
    /// The maximum number of engines; None for any number.
    pub engines: Option<u32>,
    pub python: Option<String>,
    /// The working directory of the engines.
    pub directory: Option<String>,
    /// Environment variables of the engines.
    pub env: BTreeMap<String, String>,
    /// Overrides the setting for all hosts.
    pub tunnel: Option<TunnelMode>,
}

impl SshHost {
    /// `node1`, `user@node1:4`, `ssh://user@node1:2222`, `ssh://user@node1:2222:4`.
    pub fn parse(text: &str) -> Result<SshHost, String> {
        let address = text.strip_prefix("ssh://");
        // The last number of an IPv6 address is not a count.
        let may_count = match (address, text.matches(':').count()) {
            (None, colons) => colons == 1,
            (Some(_), colons) => colons == 3,
        };
        let (host, engines) = match text.rsplit_once(':').filter(|_| may_count) {
            None => (text, None),
            Some((host, count)) => match count.parse() {
                Ok(0) | Err(_) => {
                    return Err(format!(
                        "{text:?}: the number of engines after the colon is invalid; for example node1:4"
                    ));
                }
                Ok(count) => (host, Some(count)),
            },
        };
        if host.is_empty() {
            return Err(format!("{text:?} has no host"));
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
                f.write_str("a host such as node1:4, or a mapping with `host`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<SshHost, E> {
                SshHost::parse(text).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SshHost, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                let parsed = SshHost::parse(&fields.host).map_err(A::Error::custom)?;
                if let Some(name) = fields.env.keys().find(|name| !is_variable(name)) {
                    return Err(A::Error::custom(format!("{name:?} is not a valid name of an environment variable")));
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
    fn a_host_is_a_string_or_a_mapping() {
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
