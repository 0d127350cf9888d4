//! Tests whether a host's engines reach the controller directly, with the pcluster that is installed on the host.
use crate::connection::ConnectionFile;
use crate::connection::addresses::is_loopback;
use crate::model::shell::quoted;
use crate::ssh::Ssh;
use crate::sys::process;
use std::time::Duration;

/// The timeout for all addresses, which are tried in parallel with a shorter one.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The first word of a line that `pcluster engine --probe` prints for an address.
pub(crate) const REACHED: &str = "reached";
pub(crate) const FAILED: &str = "failed";

/// The address at which the host reaches the controller, or why it reaches none.
pub(crate) async fn probe(ssh: &Ssh, program: &str, node: &str, file: &ConnectionFile) -> Result<String, String> {
    let Some((keys, port)) = file.pcluster.as_ref().and_then(|keys| Some((keys, keys.engine_port?))) else {
        return Err("the connection file names no address for it".into());
    };
    // On the remote host, the loopback is that host's own.
    let is_here = node == process::host();
    let addresses: Vec<&String> = keys.addresses.iter().filter(|a| is_here || !is_loopback(a)).collect();
    if addresses.is_empty() {
        return Err("the controller listens only on its own host's loopback".into());
    }
    let words: Vec<String> = addresses
        .iter()
        .map(|address| match address.contains(':') {
            true => format!("--probe {}", quoted(format!("[{address}]:{port}"))),
            false => format!("--probe {}", quoted(format!("{address}:{port}"))),
        })
        .collect();
    let script = format!("{} engine {} 2>&1 </dev/null", quoted(program), words.join(" "));
    answer(&ssh.ask(&script, TIMEOUT).await.map_err(|e| e.to_string())?)
}

fn answer(text: &str) -> Result<String, String> {
    let after = |word: &'static str| {
        let lines = text.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.map(str::to_string)
    };
    if let Some(address) = after(REACHED).next() {
        return Ok(address);
    }
    let failures: Vec<String> = after(FAILED).collect();
    Err(match failures.is_empty() {
        true => format!("it was not tried: {}", text.trim()),
        false => failures.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_will_do_and_all_that_failed_are_named() {
        assert_eq!(answer("failed 10.0.0.1:7 (a)\nreached 10.0.0.2:7\n"), Ok("10.0.0.2:7".into()));
        assert_eq!(answer("failed a:7 (x)\nfailed b:7 (y)\n"), Err("a:7 (x), b:7 (y)".into()));
        assert_eq!(
            answer("error: no such option\n"),
            Err("it was not tried: error: no such option".into())
        );
    }
}
