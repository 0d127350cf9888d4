//! Logs peers whose encryption does not match the socket's.
//!
//! A libzmq peer (an ipyparallel client) that receives another security mechanism than its own
//! closes the connection before it has sent the name of its mechanism, and never reconnects. omq
//! reports the start of such a connection, and of its end either nothing or a reset.
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Interval between log lines: unknown peers must not fill the log.
const INTERVAL: Duration = Duration::from_mins(1);
/// After this time each handshake has succeeded or failed, or the peer has closed its connection;
/// longer than omq's timeout.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(7);
/// A peer that finds a responding address connects to it within this time.
const PROBE_WINDOW: Duration = Duration::from_secs(1);
/// Maximum number of observed connections. Further ones are not added.
const MAX_OPEN: usize = 1024;

/// The handshakes of one socket.
pub(super) struct Handshakes {
    encrypts: bool,
    /// Peers with a pending handshake, by connection.
    open: HashMap<u64, (String, Instant)>,
    logged: Option<Instant>,
    /// Failures since the last log line that were not logged.
    unlogged: u64,
}

impl Handshakes {
    pub(super) fn new(encrypts: bool) -> Handshakes {
        Handshakes {
            encrypts,
            open: HashMap::new(),
            logged: None,
            unlogged: 0,
        }
    }

    pub(super) fn began(&mut self, connection: u64, peer: String) {
        if self.open.len() < MAX_OPEN {
            self.open.insert(connection, (peer, Instant::now()));
        }
    }

    /// Earlier connections of the same host within this time were probes: pcluster's own peers use
    /// them to find a responding address.
    pub(super) fn succeeded(&mut self, connection: u64) {
        let Some((peer, begin)) = self.open.remove(&connection) else {
            return;
        };
        let is_probe =
            |other: &str, at: Instant| host(other) == host(&peer) && begin.saturating_duration_since(at) <= PROBE_WINDOW && at <= begin;
        self.open.retain(|_, (other, at)| !is_probe(other, *at));
    }

    /// `reason` is omq's.
    pub(super) fn failed(&mut self, peer: &str, reason: &str) {
        // The peer closed the connection while a write was in progress: a mere disconnect, which is
        // not reported.
        if reason.starts_with("io error") {
            return;
        }
        self.open.retain(|_, (open, _)| open != peer);
        if let Some(theirs) = mechanism(reason) {
            let cause = format!("its security mechanism is {theirs}, the cluster's is {}", self.mechanism());
            self.log(peer, &cause, Instant::now());
        }
    }

    /// Events were lost.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// When [`Handshakes::check_closed`] is due, if any handshake is pending.
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.values().map(|(_, began)| *began + HANDSHAKE_DEADLINE).min()
    }

    /// Logs the connections that their peers have closed.
    pub(super) fn check_closed(&mut self, now: Instant) {
        let closed = self
            .open
            .extract_if(|_, (_, began)| now.saturating_duration_since(*began) >= HANDSHAKE_DEADLINE);
        let closed: Vec<String> = closed.map(|(_, (peer, _))| peer).collect();
        for peer in closed {
            let cause = format!(
                "it closed the connection; probably its security mechanism is not the cluster's ({})",
                self.mechanism()
            );
            self.log(&peer, &cause, now);
        }
    }

    fn mechanism(&self) -> &'static str {
        if self.encrypts { "CURVE" } else { "NULL" }
    }

    fn log(&mut self, peer: &str, cause: &str, now: Instant) {
        if let Some(line) = self.line(peer, cause, now) {
            tracing::warn!("{line}");
        }
    }

    fn line(&mut self, peer: &str, cause: &str, now: Instant) -> Option<String> {
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < INTERVAL) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        let more = match std::mem::take(&mut self.unlogged) {
            0 => String::new(),
            n => format!(" ({n} more since the last such message)"),
        };
        let hint = if self.encrypts {
            "if this is a client or engine of ipyparallel 6 or older, or its ZeroMQ has no CURVE, start the cluster with `pcluster start --no-curve`"
        } else {
            "this cluster was started with `--no-curve`: clients and engines need the current connection file"
        };
        Some(format!("no handshake with {peer}: {cause}{more}; hint: {hint}"))
    }
}

fn host(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

/// The peer's mechanism in "mechanism mismatch: ours=\"CURVE\" peer=\"NULL\"", if it is one of
/// ZeroMQ's; other names are not repeated in the log.
fn mechanism(reason: &str) -> Option<&str> {
    let (_, after) = reason.split_once("mechanism mismatch: ours=\"")?;
    let (_, theirs) = after.split_once("\" peer=\"")?;
    let known = ["NULL", "PLAIN", "CURVE", "GSSAPI"];
    Some(
        known
            .into_iter()
            .find(|known| theirs.strip_suffix('"') == Some(known))
            .unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_without_curve_is_logged_once_a_minute() {
        let (mut handshakes, begin) = (Handshakes::new(true), Instant::now());
        let line = handshakes.line("10.0.0.7:4711", "cause", begin).unwrap();
        assert!(line.contains("10.0.0.7:4711") && line.contains("--no-curve"), "{line}");
        for second in 1..60 {
            let now = begin + Duration::from_secs(second);
            assert_eq!(handshakes.line("10.0.0.7:4712", "cause", now), None);
        }
        let line = handshakes.line("10.0.0.8:1", "cause", begin + INTERVAL).unwrap();
        assert!(line.contains("10.0.0.8:1") && line.contains("59 more"), "{line}");
    }

    #[test]
    fn only_handshakes_that_neither_succeeded_nor_failed_otherwise_are_logged() {
        let mut handshakes = Handshakes::new(true);
        // A probe and the connection that follows it; a connection that fails otherwise; one that
        // is reset, as by libzmq.
        for (connection, peer) in [(0, "a:1"), (1, "a:2"), (2, "b:1"), (3, "c:1")] {
            handshakes.began(connection, peer.into());
        }
        handshakes.succeeded(1);
        handshakes.failed("b:1", "CURVE HELLO signature invalid");
        handshakes.failed("c:1", "io error: Connection reset by peer (os error 104)");
        assert_eq!(handshakes.logged, None);
        let due = handshakes.due().unwrap();
        handshakes.check_closed(due.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!((handshakes.logged, handshakes.open.len()), (None, 1));
        handshakes.check_closed(due);
        assert_eq!((handshakes.logged, handshakes.due()), (Some(due), None));
        for connection in 0..5000 {
            handshakes.began(connection, "d".into());
        }
        assert_eq!(handshakes.open.len(), MAX_OPEN);
    }

    #[test]
    fn only_names_of_zeromq_mechanisms_are_logged() {
        assert_eq!(mechanism("CURVE HELLO signature invalid"), None);
        assert_eq!(
            mechanism("handshake failed: mechanism mismatch: ours=\"CURVE\" peer=\"NULL\""),
            Some("NULL")
        );
        assert_eq!(mechanism("mechanism mismatch: ours=\"NULL\" peer=\"\\u{1b}[2J\""), Some("unknown"));
    }
}
