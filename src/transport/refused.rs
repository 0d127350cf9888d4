//! What the log says of peers whose encryption is not the socket's.
use std::time::{Duration, Instant};

/// One line in so long: strangers must not fill the log.
const INTERVAL: Duration = Duration::from_mins(1);

/// Limits the lines of one socket.
#[derive(Default)]
pub struct Mismatches {
    logged: Option<Instant>,
    /// Handshakes that failed so since the last line.
    unlogged: u64,
}

impl Mismatches {
    /// A handshake failed with `reason`, in omq's words.
    pub fn note(&mut self, peer: &str, reason: &str) {
        if let Some(line) = self.line(peer, reason, Instant::now()) {
            tracing::warn!("{line}");
        }
    }

    fn line(&mut self, peer: &str, reason: &str, now: Instant) -> Option<String> {
        let (ours, theirs) = mechanisms(reason)?;
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < INTERVAL) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        let more = match std::mem::take(&mut self.unlogged) {
            0 => String::new(),
            n => format!(" ({n} more since the last such line)"),
        };
        let hint = match ours {
            "NULL" => "this cluster was started with `--no-curve`: give the peer the cluster's present connection file",
            _ => {
                "an ipyparallel 6 client, or a ZeroMQ without CURVE, cannot use an encrypted cluster: \
                 start the cluster with `pcluster start --no-curve` for it"
            }
        };
        Some(format!(
            "refused a connection from {peer}: its security mechanism is {theirs}, the cluster's is {ours}{more}; hint: {hint}"
        ))
    }
}

/// Ours and the peer's of "mechanism mismatch: ours=\"CURVE\" peer=\"NULL\"". The peer's is one of ZeroMQ's, or not repeated.
fn mechanisms(reason: &str) -> Option<(&str, &str)> {
    let (_, after) = reason.split_once("mechanism mismatch: ours=\"")?;
    let (ours, after) = after.split_once("\" peer=\"")?;
    let theirs = after.strip_suffix('"')?;
    let known = ["NULL", "PLAIN", "CURVE", "GSSAPI"];
    Some((ours, if known.contains(&theirs) { theirs } else { "unknown" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NULL: &str = "mechanism mismatch: ours=\"CURVE\" peer=\"NULL\"";

    #[test]
    fn a_peer_without_curve_is_logged_once_a_minute() {
        let (mut mismatches, begin) = (Mismatches::default(), Instant::now());
        let line = mismatches.line("10.0.0.7:4711", NULL, begin).unwrap();
        assert!(
            line.contains("10.0.0.7:4711") && line.contains("is NULL") && line.contains("--no-curve"),
            "{line}"
        );
        for second in 1..60 {
            assert_eq!(mismatches.line("10.0.0.7:4712", NULL, begin + Duration::from_secs(second)), None);
        }
        let line = mismatches.line("10.0.0.8:1", NULL, begin + Duration::from_mins(1)).unwrap();
        assert!(line.contains("10.0.0.8:1") && line.contains("59 more"), "{line}");
    }

    #[test]
    fn other_failures_are_not_logged_and_names_not_repeated() {
        let mut mismatches = Mismatches::default();
        let now = Instant::now();
        assert_eq!(mismatches.line("a", "CURVE HELLO signature invalid", now), None);
        let line = mismatches
            .line("a", "handshake: mechanism mismatch: ours=\"NULL\" peer=\"\\u{1b}[2J\"", now)
            .unwrap();
        assert!(line.contains("is unknown") && line.contains("connection file"), "{line}");
    }
}
