//! The user's ssh configuration for a host, as `ssh -G` (ssh(1)) prints it: only the settings that pcluster needs, because
//! it would override them or ssh would prompt. ssh applies all others itself.
use super::destination::Destination;
use super::error::SshError;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostConfig {
    /// The address or name behind an alias.
    pub host_name: String,
    /// The socket of the user's own shared connection (ControlMaster), which may not exist.
    pub control_path: Option<PathBuf>,
    pub connect_timeout: Option<Duration>,
    pub alive_every: Option<Duration>,
    pub host_keys: HostKeys,
}

/// The policy for a host whose key is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostKeys {
    /// Refuse it; also where ssh would prompt, since no one can answer.
    #[default]
    Strict,
    AcceptNew,
    Unchecked,
}

impl HostConfig {
    pub(crate) async fn of(to: &Destination) -> Result<HostConfig, SshError> {
        let mut command = tokio::process::Command::new("ssh");
        command.arg("-G");
        // Older versions do not accept the port of `ssh://`.
        command.arg("--").arg(to.as_str());
        let output = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(SshError::NoSsh)?;
        if !output.status.success() {
            return Err(SshError::Configuration {
                to: to.to_string(),
                output: String::from_utf8_lossy(&output.stderr).trim().to_string(),
            });
        }
        Ok(HostConfig::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(text: &str) -> HostConfig {
        let mut settings = HostConfig::default();
        let seconds = |value: &str| value.parse().ok().filter(|s| *s > 0).map(Duration::from_secs);
        for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            match key {
                "hostname" => settings.host_name = value.into(),
                "controlpath" if value != "none" => settings.control_path = Some(value.into()),
                "connecttimeout" => settings.connect_timeout = seconds(value),
                "serveraliveinterval" => settings.alive_every = seconds(value),
                "stricthostkeychecking" => {
                    settings.host_keys = match value {
                        "accept-new" => HostKeys::AcceptNew,
                        "no" | "off" | "false" => HostKeys::Unchecked,
                        _ => HostKeys::Strict,
                    }
                }
                _ => {}
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_ssh_g_is_parsed() {
        let text = "host login\nuser me\nhostname 10.0.0.1\ncontrolpath /h/.ssh/cm-abc\nconnecttimeout 7\nserveraliveinterval 0\nstricthostkeychecking accept-new\nsendenv LANG";
        let settings = HostConfig::parse(text);
        assert_eq!(
            settings,
            HostConfig {
                host_name: "10.0.0.1".into(),
                control_path: Some("/h/.ssh/cm-abc".into()),
                connect_timeout: Some(Duration::from_secs(7)),
                alive_every: None,
                host_keys: HostKeys::AcceptNew,
            }
        );
        assert_eq!(HostConfig::parse("stricthostkeychecking ask").host_keys, HostKeys::Strict);
        assert_eq!(HostConfig::parse("stricthostkeychecking false").host_keys, HostKeys::Unchecked);
        assert_eq!(HostConfig::parse("connecttimeout none").connect_timeout, None);
    }
}
