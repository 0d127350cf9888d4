//! A memory budget for unsent messages, over all sockets of a process: when it is exceeded, the
//! peer with the most unsent data is disconnected.
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::mpsc::UnboundedSender;

/// Shorter messages count only outside their socket, whose own buffer is limited to a thousand
/// messages.
pub const WEIGHED: usize = 4096;
/// Maximum unsent size of one peer inside its socket; further messages are queued outside.
pub const WINDOW: usize = 64 << 20;
/// When the table has this many entries, those of peers without unsent messages are removed.
const MANY: usize = 4096;

/// Shared by the sockets that it limits together.
#[derive(Clone)]
pub struct Waiting(Arc<Shared>);

/// A [`MemoryBudget`] that may already be dropped.
pub struct Remote(Weak<Shared>);

impl Remote {
    pub fn upgrade(&self) -> Option<Waiting> {
        self.0.upgrade().map(Waiting)
    }
}

struct Shared {
    most: usize,
    bytes: AtomicUsize,
    cut_off: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Channels to the sockets; each receives the names of peers to disconnect, and the reasons.
    sockets: Vec<UnboundedSender<(Bytes, String)>>,
    peers: HashMap<(usize, Bytes), Arc<Load>>,
    /// The usage of peers that are being disconnected, which will be freed.
    leaving: Vec<Arc<Load>>,
}

/// The unsent messages of one peer.
pub struct Load {
    of: Waiting,
    bytes: AtomicUsize,
    messages: AtomicUsize,
}

/// The share of one unsent message; released on drop.
pub struct Weight {
    load: Arc<Load>,
    bytes: usize,
}

impl Waiting {
    pub fn new(most: usize) -> Waiting {
        Waiting(Arc::new(Shared {
            most,
            bytes: AtomicUsize::new(0),
            cut_off: AtomicU64::new(0),
            table: Mutex::default(),
        }))
    }

    /// The limit, for one peer and for all together.
    pub fn most(&self) -> usize {
        self.0.most
    }

    /// The number of peers disconnected because they did not read.
    pub fn cut_off(&self) -> u64 {
        self.0.cut_off.load(Ordering::Relaxed)
    }

    pub(super) fn note_cut_off(&self) {
        self.0.cut_off.fetch_add(1, Ordering::Relaxed);
    }

    /// Does not keep the sockets alive.
    pub(super) fn downgrade(&self) -> Remote {
        Remote(Arc::downgrade(&self.0))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a socket; returns its number.
    pub(super) fn join(&self, cut_off: UnboundedSender<(Bytes, String)>) -> usize {
        let sockets = &mut self.table().sockets;
        sockets.push(cut_off);
        sockets.len() - 1
    }

    pub(super) fn load(&self, socket: usize, peer: &Bytes) -> Arc<Load> {
        let mut table = self.table();
        if table.peers.len() >= MANY && !table.peers.contains_key(&(socket, peer.clone())) {
            table.peers.retain(|_, load| load.messages.load(Ordering::Relaxed) > 0);
        }
        let load = || {
            Arc::new(Load {
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
        while bytes > self.0.most {
            let several = table.peers.iter().filter(|(_, load)| load.messages.load(Ordering::Relaxed) > 1);
            let Some((key, load)) = several.max_by_key(|(_, load)| load.bytes()) else {
                return;
            };
            let (key, load) = (key.clone(), load.clone());
            table.peers.remove(&key);
            let its = load.bytes();
            let messages = load.messages.load(Ordering::Relaxed);
            let why = format!(
                "it does not read: of the {bytes} bytes that wait for all peers, {its} in {messages} messages are its, more than any other's"
            );
            bytes = bytes.saturating_sub(its);
            table.leaving.push(load);
            self.note_cut_off();
            if let Some(socket) = table.sockets.get(key.0) {
                let _ = socket.send((key.1, why));
            }
        }
    }
}

impl Load {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Accounts for a message that is not sent yet.
    pub fn weigh(self: &Arc<Load>, bytes: usize) -> Weight {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
        let before = self.of.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        let weight = Weight { load: self.clone(), bytes };
        if before + bytes > self.of.0.most {
            self.of.make_room();
        }
        weight
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.load.messages.fetch_sub(1, Ordering::Relaxed);
        self.load.of.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that count until their last copy is dropped.
pub fn weighed(bytes: Bytes, weight: Weight) -> Bytes {
    struct Owner(Bytes, #[expect(dead_code, reason = "its end counts")] Weight);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(bytes, weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn who_lets_most_wait_goes_first_and_one_message_may_be_long() {
        let waiting = Waiting::new(100);
        let (sender, mut cut_off) = unbounded_channel();
        let socket = waiting.join(sender);
        let load = |name: &'static str| waiting.load(socket, &Bytes::from_static(name.as_bytes()));
        let long = load("long").weigh(1000);
        assert!(cut_off.try_recv().is_err(), "there is nobody else");
        drop(long);
        let _kept = (load("a").weigh(20), load("a").weigh(20), load("b").weigh(30), load("b").weigh(25));
        assert!(cut_off.try_recv().is_err());
        let small = load("c").weigh(10);
        let (peer, why) = cut_off.try_recv().unwrap();
        assert_eq!(peer, "b");
        assert!(why.starts_with("it does not read: of the 105 bytes"), "{why}");
        // Its bytes will be freed shortly.
        let more = load("c").weigh(30);
        assert!(cut_off.try_recv().is_err());
        assert_eq!(waiting.cut_off(), 1);
        drop((small, more));
    }

    #[test]
    fn bytes_weigh_until_the_last_copy_is_gone() {
        let waiting = Waiting::new(100);
        let load = waiting.load(0, &Bytes::from_static(b"a"));
        let bytes = weighed(Bytes::from_static(b"12345"), load.weigh(50));
        let copy = bytes.slice(2..);
        drop(bytes);
        assert_eq!((copy.as_ref(), load.bytes()), (b"345".as_slice(), 50));
        drop(copy);
        assert_eq!(load.bytes(), 0);
    }
}
