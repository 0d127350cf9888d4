//! Copies this program to another host: only if it is missing or differs, and only if it runs on that host; the copy is verified
//! by its hash before it replaces the old one.
use super::error::RemoteError;
use crate::cluster::ClusterError;
use crate::model::VERSION;
use crate::model::shell::quoted;
use crate::ssh::Ssh;
use crate::ssh::probe::Host;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// A slow connection needs time for some tens of megabytes.
const COPY: Duration = Duration::from_secs(900);
/// Home directories of clusters may be slow.
const TIMEOUT: Duration = Duration::from_secs(30);
const INSTALL_PATH: &str = ".local/bin/pcluster";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub path: String,
    /// Whether it was copied; else it was already installed.
    pub copied: bool,
    /// The version that was replaced, if any.
    pub before: Option<String>,
}

/// Finds a remote pcluster of this version; copies it if there is none and `may_copy`.
pub(crate) async fn ensure(ssh: &Ssh, host: &Host, may_copy: bool) -> Result<Installed, ClusterError> {
    let to = || ssh.destination().to_string();
    match host.program() {
        Some((path, Some(VERSION))) => Ok(Installed {
            path: path.into(),
            copied: false,
            before: None,
        }),
        _ if may_copy => copy(ssh, host).await,
        Some((path, version)) => Err(RemoteError::OtherVersion {
            to: to(),
            path: path.into(),
            remote: version.unwrap_or("unknown").into(),
            local: VERSION.into(),
        }
        .into()),
        None => Err(RemoteError::NotInstalled { to: to() }.into()),
    }
}

/// Copies this program to `~/.local/bin`, unless the same program is already installed.
pub(crate) async fn copy(ssh: &Ssh, host: &Host) -> Result<Installed, ClusterError> {
    let to = || ssh.destination().to_string();
    if !same_machine(&host.system, &host.machine) {
        return Err(RemoteError::OtherMachine {
            to: to(),
            remote: host.platform(),
            local: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        }
        .into());
    }
    let program = std::env::current_exe().map_err(RemoteError::Program)?;
    let bytes = tokio::fs::read(program).await.map_err(RemoteError::Program)?;
    let here = hex::encode(Sha256::digest(&bytes));
    let path = format!("{}/{INSTALL_PATH}", host.home);
    let before = host
        .program()
        .filter(|(found, _)| *found == path)
        .and_then(|(_, version)| Some(version?.to_string()));
    if hash(ssh, &path).await?.as_deref() == Some(&here) {
        return Ok(Installed {
            path,
            copied: false,
            before: None,
        });
    }
    let new = format!("{path}.new-{}", std::process::id());
    ssh.put(&bytes, &new, true, COPY).await?;
    let checked = check(ssh, &new, &here).await;
    // A copy that fails the check is removed.
    let last = match &checked {
        Ok(()) => format!("mv -f {} {}", quoted(&new), quoted(&path)),
        Err(_) => format!("rm -f {}", quoted(&new)),
    };
    let output = ssh.script(&last, TIMEOUT).await?;
    checked?;
    match output.ok() {
        true => Ok(Installed {
            path,
            copied: true,
            before,
        }),
        false => Err(RemoteError::DoesNotRun {
            to: to(),
            output: output.last_lines(),
        }
        .into()),
    }
}

async fn check(ssh: &Ssh, path: &str, expected: &str) -> Result<(), ClusterError> {
    let to = || ssh.destination().to_string();
    // A host without a hash program prints none; then only the length has been compared.
    if let Some(remote) = hash(ssh, path).await?
        && remote != expected
    {
        let (to, local) = (to(), expected.to_string());
        return Err(RemoteError::Damaged { to, remote, local }.into());
    }
    let output = ssh.run(&[path, "version"], b"", TIMEOUT).await?;
    match output.stdout_text().contains(VERSION) && output.ok() {
        true => Ok(()),
        false => Err(RemoteError::DoesNotRun {
            to: to(),
            output: output.last_lines(),
        }
        .into()),
    }
}

async fn hash(ssh: &Ssh, path: &str) -> Result<Option<String>, ClusterError> {
    let path = quoted(path);
    let script =
        format!("[ -r {path} ] && {{ sha256sum {path} || shasum -a 256 {path} || openssl dgst -r -sha256 {path}; }} 2>/dev/null\n");
    let output = ssh.script(&script, TIMEOUT).await?;
    let text = output.stdout_text();
    let is_hash = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(text.split_whitespace().find(is_hash).map(str::to_lowercase))
}

/// Compares with the output of `uname -s` and `uname -m`.
fn same_machine(system: &str, machine: &str) -> bool {
    let machine = match machine {
        "amd64" | "x64" => "x86_64",
        "arm64" => "aarch64",
        "i386" | "i486" | "i586" | "i686" => "x86",
        "ppc64le" => "powerpc64",
        other => other,
    };
    system.eq_ignore_ascii_case(std::env::consts::OS) && machine == std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_recognized() {
        assert!(same_machine("Linux", std::env::consts::ARCH));
        assert!(!same_machine("Darwin", std::env::consts::ARCH));
        assert!(!same_machine("Linux", "s390x"));
    }
}
