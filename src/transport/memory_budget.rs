//! A memory budget for unsent messages, over all sockets of a process: when it is exceeded, the
//! peer with the most unsent data is disconnected.
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::mpsc::UnboundedSender;

/// Shorter messages count only outside their socket, whose own buffer is limited to a thousand
/// messages.
pub(super) const MIN_ACCOUNTED_BYTES: usize = 4096;
/// Maximum unsent size of one peer inside its socket; further messages are queued outside.
pub(super) const MAX_SOCKET_BYTES: usize = 64 << 20;
/// When the table has this many entries, those of peers without unsent messages are removed.
const PRUNE_THRESHOLD: usize = 4096;

/// Shared by the sockets that it limits together.
#[derive(Clone)]
pub struct MemoryBudget(Arc<BudgetState>);

/// A [`MemoryBudget`] that may already be dropped.
pub(super) struct WeakMemoryBudget(Weak<BudgetState>);

impl WeakMemoryBudget {
    pub(super) fn upgrade(&self) -> Option<MemoryBudget> {
        self.0.upgrade().map(MemoryBudget)
    }
}

struct BudgetState {
    max_bytes: usize,
    bytes: AtomicUsize,
    disconnect_count: AtomicU64,
    table: Mutex<PeerTable>,
}

#[derive(Default)]
struct PeerTable {
    /// Channels to the sockets; each receives the names of peers to disconnect, and the reasons.
    sockets: Vec<UnboundedSender<(Bytes, String)>>,
    peers: HashMap<(usize, Bytes), Arc<PeerUsage>>,
    /// The usage of peers that are being disconnected, which will be freed.
    leaving: Vec<Arc<PeerUsage>>,
}

/// The unsent messages of one peer.
pub(super) struct PeerUsage {
    of: MemoryBudget,
    bytes: AtomicUsize,
    messages: AtomicUsize,
}

/// The share of one unsent message; released on drop.
pub(super) struct Reservation {
    load: Arc<PeerUsage>,
    bytes: usize,
}

impl MemoryBudget {
    pub fn new(max_bytes: usize) -> MemoryBudget {
        MemoryBudget(Arc::new(BudgetState {
            max_bytes,
            bytes: AtomicUsize::new(0),
            disconnect_count: AtomicU64::new(0),
            table: Mutex::default(),
        }))
    }

    /// The limit, for one peer and for all together.
    pub fn max_bytes(&self) -> usize {
        self.0.max_bytes
    }

    /// The number of peers disconnected because they did not read.
    pub fn disconnected_peers(&self) -> u64 {
        self.0.disconnect_count.load(Ordering::Relaxed)
    }

    pub(super) fn count_disconnect(&self) {
        self.0.disconnect_count.fetch_add(1, Ordering::Relaxed);
    }

    /// Does not keep the sockets alive.
    pub(super) fn downgrade(&self) -> WeakMemoryBudget {
        WeakMemoryBudget(Arc::downgrade(&self.0))
    }

    fn table(&self) -> MutexGuard<'_, PeerTable> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a socket; returns its number.
    pub(super) fn join(&self, disconnect: UnboundedSender<(Bytes, String)>) -> usize {
        let sockets = &mut self.table().sockets;
        sockets.push(disconnect);
        sockets.len() - 1
    }

    pub(super) fn usage(&self, socket: usize, peer: &Bytes) -> Arc<PeerUsage> {
        let mut table = self.table();
        if table.peers.len() >= PRUNE_THRESHOLD && !table.peers.contains_key(&(socket, peer.clone())) {
            table.peers.retain(|_, load| load.messages.load(Ordering::Relaxed) > 0);
        }
        let load = || {
            Arc::new(PeerUsage {
                of: self.clone(),
                bytes: AtomicUsize::new(0),
                messages: AtomicUsize::new(0),
            })
        };
        table.peers.entry((socket, peer.clone())).or_insert_with(load).clone()
    }

    /// Removes a peer that has disconnected.
    pub(super) fn forget(&self, socket: usize, peer: &Bytes) {
        self.table().peers.remove(&(socket, peer.clone()));
    }

    /// Disconnects the peers with the most unsent data until the rest is within the limit. A single
    /// message may exceed it.
    fn make_room(&self) {
        let mut table = self.table();
        table.leaving.retain(|load| load.messages.load(Ordering::Relaxed) > 0);
        let leaving: usize = table.leaving.iter().map(|load| load.bytes()).sum();
        let mut bytes = self.0.bytes.load(Ordering::Relaxed).saturating_sub(leaving);
        while bytes > self.0.max_bytes {
            let several = table.peers.iter().filter(|(_, load)| load.messages.load(Ordering::Relaxed) > 1);
            let Some((key, load)) = several.max_by_key(|(_, load)| load.bytes()) else {
                return;
            };
            let (key, load) = (key.clone(), load.clone());
            table.peers.remove(&key);
            let used = load.bytes();
            let messages = load.messages.load(Ordering::Relaxed);
            let why = format!(
                "it does not read: it holds {used} of the {bytes} unsent bytes of all peers, in {messages} messages, more than any other peer"
            );
            bytes = bytes.saturating_sub(used);
            table.leaving.push(load);
            self.count_disconnect();
            if let Some(socket) = table.sockets.get(key.0) {
                let _ = socket.send((key.1, why));
            }
        }
    }
}

impl PeerUsage {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Accounts for a message that is not sent yet.
    pub(super) fn reserve(self: &Arc<PeerUsage>, bytes: usize) -> Reservation {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
        let before = self.of.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation { load: self.clone(), bytes };
        if before + bytes > self.of.0.max_bytes {
            self.of.make_room();
        }
        reservation
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.load.messages.fetch_sub(1, Ordering::Relaxed);
        self.load.of.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that count until their last copy is dropped.
pub(super) fn with_reservation(bytes: Bytes, reservation: Reservation) -> Bytes {
    struct Owner(
        Bytes,
        #[expect(dead_code, reason = "dropping it frees the reservation")] Reservation,
    );
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(bytes, reservation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn the_slowest_peer_is_disconnected_first_and_a_single_message_may_exceed_the_limit() {
        let budget = MemoryBudget::new(100);
        let (sender, mut disconnect) = unbounded_channel();
        let socket = budget.join(sender);
        let load = |name: &'static str| budget.usage(socket, &Bytes::from_static(name.as_bytes()));
        let long = load("long").reserve(1000);
        assert!(disconnect.try_recv().is_err(), "there is no other peer");
        drop(long);
        let _kept = (
            load("a").reserve(20),
            load("a").reserve(20),
            load("b").reserve(30),
            load("b").reserve(25),
        );
        assert!(disconnect.try_recv().is_err());
        let small = load("c").reserve(10);
        let (peer, why) = disconnect.try_recv().unwrap();
        assert_eq!(peer, "b");
        assert!(why.starts_with("it does not read: it holds 55 of the 105 unsent bytes"), "{why}");
        // Its bytes will be freed shortly.
        let more = load("c").reserve(30);
        assert!(disconnect.try_recv().is_err());
        assert_eq!(budget.disconnected_peers(), 1);
        drop((small, more));
    }

    #[test]
    fn a_reservation_lasts_until_the_last_copy_is_dropped() {
        let budget = MemoryBudget::new(100);
        let load = budget.usage(0, &Bytes::from_static(b"a"));
        let bytes = with_reservation(Bytes::from_static(b"12345"), load.reserve(50));
        let copy = bytes.slice(2..);
        drop(bytes);
        assert_eq!((copy.as_ref(), load.bytes()), (b"345".as_slice(), 50));
        drop(copy);
        assert_eq!(load.bytes(), 0);
    }
}
