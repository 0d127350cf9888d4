//! Tests whether a host's engines reach the controller directly, with the pcluster that is installed on the host.
use crate::connection::ConnectionFile;
use crate::connection::addresses::is_loopback;
use crate::model::shell::quoted;
use crate::ssh::{Ssh, SshError};
use crate::sys::process;
use std::time::Duration;

/// The timeout for all addresses, which are tried in parallel with a shorter one.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The first word of a line that `pcluster engine --probe` prints for an address.
pub(crate) const REACHED: &str = "reached";
pub(crate) const FAILED: &str = "failed";

/// Why the engines of a host do not reach the controller directly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReached {
    #[error("the connection file names no address of the controller")]
    NoAddress,
    #[error("the controller listens only on its own host's loopback")]
    OnlyLoopback,
    #[error(transparent)]
    Ssh(#[from] SshError),
    #[error("the test failed: {0}")]
    NotTried(String),
    #[error("{}", .0.join(", "))]
    Failed(Vec<String>),
}

/// The address at which the host reaches the controller, or why it reaches none.
pub(crate) async fn probe(ssh: &Ssh, program: &str, node: &str, file: &ConnectionFile) -> Result<String, NotReached> {
    let Some((keys, port)) = file.pcluster.as_ref().and_then(|keys| Some((keys, keys.engine_port?))) else {
        return Err(NotReached::NoAddress);
    };
    // On the remote host, the loopback is that host's own.
    let is_here = node == process::host();
    let addresses: Vec<&String> = keys.addresses.iter().filter(|a| is_here || !is_loopback(a)).collect();
    if addresses.is_empty() {
        return Err(NotReached::OnlyLoopback);
    }
    let words: Vec<String> = addresses
        .iter()
        .map(|address| match address.contains(':') {
            true => format!("--probe {}", quoted(format!("[{address}]:{port}"))),
            false => format!("--probe {}", quoted(format!("{address}:{port}"))),
        })
        .collect();
    let script = format!("{} engine {} 2>&1 </dev/null", quoted(program), words.join(" "));
    answer(&ssh.ask(&script, TIMEOUT).await?)
}

fn answer(text: &str) -> Result<String, NotReached> {
    let after = |word: &'static str| {
        let lines = text.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.map(str::to_string)
    };
    if let Some(address) = after(REACHED).next() {
        return Ok(address);
    }
    let failures: Vec<String> = after(FAILED).collect();
    Err(match failures.is_empty() {
        true => NotReached::NotTried(text.trim().into()),
        false => NotReached::Failed(failures),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reachable_address_suffices_and_all_failed_ones_are_named() {
        assert_eq!(answer("failed 10.0.0.1:7 (a)\nreached 10.0.0.2:7\n").unwrap(), "10.0.0.2:7");
        let why = |text: &str| answer(text).unwrap_err().to_string();
        assert_eq!(why("failed a:7 (x)\nfailed b:7 (y)\n"), "a:7 (x), b:7 (y)");
        assert_eq!(why("error: no such option\n"), "the test failed: error: no such option");
    }
}
