//! Probes another host for its system and programs, by a POSIX shell script, so that it works where pcluster is not installed.
use super::error::SshError;
use super::session::Ssh;
use crate::model::shell::{quoted, quoted_words};
use std::time::Duration;

/// Home directories of clusters may be slow, and so may a first Python.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What to look for in addition to the properties of the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProbeRequest {
    /// A pcluster to try before the usual places.
    pub program: Option<String>,
    /// A directory that should exist.
    pub directory: Option<String>,
    /// Interpreters to try.
    pub pythons: Vec<String>,
}

/// The other host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// `uname -n`.
    pub name: String,
    /// `Linux`.
    pub system: String,
    /// `x86_64`.
    pub machine: String,
    pub home: String,
    pub ipython_dir: String,
    /// The user's login shell.
    pub shell: String,
    /// The requested directory, if it exists.
    pub directory: Option<String>,
    /// Every pcluster that was found, and the version that it printed.
    pub programs: Vec<(String, String)>,
    /// Every interpreter that was tried, and the version that it printed.
    pub pythons: Vec<(String, String)>,
}

/// Programs run by the script must not read the rest of the script from stdin.
fn script(request: &ProbeRequest) -> String {
    let directory = request.directory.as_ref().map_or_else(String::new, |directory| {
        format!("(cd {} 2>/dev/null && echo \"directory=$PWD\")\n", quoted(directory))
    });
    let program = request.program.as_deref().map(quoted).unwrap_or_default();
    let pythons = match request.pythons.is_empty() {
        true => String::new(),
        false => format!(
            r#"for p in {}; do
  echo "python=$p=$("$p" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>&1 </dev/null | tail -n 1)"
done
"#,
            quoted_words(&request.pythons)
        ),
    };
    format!(
        r#"echo "name=$(uname -n)"
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "home=$HOME"
echo "shell=$SHELL"
i=$IPYTHONDIR
[ -n "$i" ] || i=$HOME/.ipython
[ -d "$i" ] || [ -n "$IPYTHONDIR" ] || [ ! -d "${{XDG_CONFIG_HOME:-$HOME/.config}}/ipython" ] || i=${{XDG_CONFIG_HOME:-$HOME/.config}}/ipython
echo "ipython_dir=$i"
{directory}for p in {program} "$HOME/.local/bin/pcluster" "$HOME/.cargo/bin/pcluster" "$(command -v pcluster)"; do
  [ -n "$p" ] && [ -x "$p" ] || continue
  echo "program=$p=$("$p" version 2>&1 </dev/null | tail -n 1)"
done
{pythons}"#
    )
}

impl Host {
    pub(crate) async fn probe(ssh: &Ssh, request: &ProbeRequest) -> Result<Host, SshError> {
        let text = ssh.ask(&script(request), TIMEOUT).await?;
        let host = Host::parse(&text);
        match host.name.is_empty() || host.home.is_empty() {
            true => Err(SshError::Unexpected {
                to: ssh.destination().to_string(),
                printed: text,
            }),
            false => Ok(host),
        }
    }

    pub(crate) fn parse(text: &str) -> Host {
        let mut host = Host::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let value = value.trim().to_string();
            let pair = |value: &str| value.split_once('=').map(|(a, b)| (a.to_string(), b.to_string()));
            match key {
                "name" => host.name = value,
                "system" => host.system = value,
                "machine" => host.machine = value,
                "home" => host.home = value,
                "shell" => host.shell = value,
                "ipython_dir" => host.ipython_dir = value,
                "directory" => host.directory = Some(value),
                "program" => host.programs.extend(pair(&value)),
                "python" => host.pythons.extend(pair(&value)),
                _ => {}
            }
        }
        host
    }

    /// `Linux on x86_64`.
    pub(crate) fn platform(&self) -> String {
        format!("{} on {}", self.system, self.machine)
    }

    /// The first pcluster, and its version if it printed one.
    pub(crate) fn program(&self) -> Option<(&str, Option<&str>)> {
        let (path, printed) = self.programs.first()?;
        Some((path, printed.strip_prefix("pcluster ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_this_host_describes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for (name, version) in [("pcluster", "pcluster 1.2.3"), ("python it's", "3.11.2")] {
            let program = format!("#!/bin/sh\necho a warning\necho '{version}'\n");
            // Written by another process: a file that is open for writing in a process forked meanwhile cannot be run.
            let written = std::process::Command::new("sh")
                .args(["-c", "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"", &path(name), &program])
                .status();
            assert!(written.unwrap().success());
        }
        let request = ProbeRequest {
            program: Some(path("pcluster")),
            directory: Some(path("")),
            pythons: vec![path("python it's"), path("missing")],
        };
        let output = std::process::Command::new("sh")
            .args(["-c", &script(&request)])
            .env("HOME", dir.path())
            .output()
            .unwrap();
        let host = Host::parse(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(host.name, crate::sys::process::host());
        assert_eq!(host.platform(), format!("Linux on {}", host.machine));
        assert_eq!(host.program(), Some((path("pcluster").as_str(), Some("1.2.3"))));
        assert_eq!(host.pythons[0], (path("python it's"), "3.11.2".to_string()));
        assert!(host.pythons[1].1.contains("not found"), "{:?}", host.pythons[1]);
        let canonical = dir.path().canonicalize().unwrap();
        assert_eq!(
            host.directory.map(|found| std::path::Path::new(&found).canonicalize().unwrap()),
            Some(canonical)
        );
        assert_eq!(
            Host::parse("name=n\nprogram=/a=cannot execute: Exec format error\n").program(),
            Some(("/a", None))
        );
    }
}
