//! Send queues of slow peers: one per peer, in order, with a limit.
use super::memory_budget::{MAX_SOCKET_BYTES, PeerUsage, Reservation};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Maximum number of messages queued for one slow peer.
pub(super) const MAX_QUEUED_MESSAGES: usize = 100_000;

/// A peer exceeded its queue limit; its queue was dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not read: {messages} messages of {bytes} bytes were queued for it")]
pub(super) struct QueueLimitExceeded {
    pub messages: usize,
    pub bytes: usize,
}

/// The result of an offer.
pub(super) enum SendOutcome<M> {
    Sent,
    Full(M),
    Disconnected,
}

pub(super) struct SendQueues<M> {
    by_peer: HashMap<Bytes, PeerQueue<M>>,
    /// Whether a background task is flushing the queues.
    pub flushing: bool,
}

struct PeerQueue<M> {
    messages: VecDeque<QueuedMessage<M>>,
    bytes: usize,
    load: Arc<PeerUsage>,
}

struct QueuedMessage<M> {
    message: M,
    size: usize,
    /// None if the message contains it.
    reservation: Option<Reservation>,
}

impl<M> Default for SendQueues<M> {
    fn default() -> Self {
        SendQueues {
            by_peer: HashMap::new(),
            flushing: false,
        }
    }
}

impl<M> SendQueues<M> {
    /// Whether messages are queued for this peer, so that further ones must be queued too.
    pub(super) fn has_queued(&self, peer: &Bytes) -> bool {
        self.by_peer.contains_key(peer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_peer.is_empty()
    }

    /// Appends to the peer's queue. Beyond `max_bytes` (a single message may exceed it) or the
    /// message limit the whole queue is dropped: a peer that misses one message has to ask again
    /// for everything.
    pub(super) fn push(
        &mut self,
        peer: &Bytes,
        load: &Arc<PeerUsage>,
        message: M,
        size: usize,
        max_bytes: usize,
        reservation: Option<Reservation>,
    ) -> Result<(), QueueLimitExceeded> {
        let queue = self.by_peer.entry(peer.clone()).or_insert_with(|| PeerQueue {
            messages: VecDeque::new(),
            bytes: 0,
            load: load.clone(),
        });
        let (messages, bytes) = (queue.messages.len() + 1, queue.bytes.saturating_add(size));
        if messages > 1 && (messages > MAX_QUEUED_MESSAGES || bytes > max_bytes) {
            self.by_peer.remove(peer);
            return Err(QueueLimitExceeded { messages, bytes });
        }
        queue.bytes = bytes;
        queue.messages.push_back(QueuedMessage {
            message,
            size,
            reservation,
        });
        Ok(())
    }

    /// Drops the messages queued for a peer.
    pub(super) fn forget(&mut self, peer: &Bytes) {
        self.by_peer.remove(peer);
    }

    /// Sends queued messages, in order per peer, until each peer's socket is full or its queue is
    /// empty.
    pub(super) fn offer(&mut self, mut take: impl FnMut(M) -> SendOutcome<M>) {
        self.by_peer.retain(|_, queue| {
            while let Some(QueuedMessage {
                message,
                size,
                reservation,
            }) = queue.messages.pop_front()
            {
                // The socket's own buffer for the peer is limited too.
                let inside = queue.load.bytes().saturating_sub(queue.bytes);
                let answer = if inside >= MAX_SOCKET_BYTES {
                    SendOutcome::Full(message)
                } else {
                    take(message)
                };
                match answer {
                    SendOutcome::Sent => queue.bytes -= size,
                    SendOutcome::Full(message) => {
                        queue.messages.push_front(QueuedMessage {
                            message,
                            size,
                            reservation,
                        });
                        return true;
                    }
                    SendOutcome::Disconnected => return false,
                }
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory_budget::MemoryBudget;
    use super::*;

    const PEER: Bytes = Bytes::from_static(b"slow");
    const MAX_BYTES: usize = 1000;

    struct Fixture {
        queues: SendQueues<usize>,
        load: Arc<PeerUsage>,
    }

    impl Fixture {
        fn new() -> Fixture {
            Fixture {
                queues: SendQueues::default(),
                load: MemoryBudget::new(usize::MAX).usage(0, &PEER),
            }
        }
        fn push(&mut self, peer: &Bytes, message: usize, size: usize) -> Result<(), QueueLimitExceeded> {
            let reservation = self.load.reserve(size);
            self.queues.push(peer, &self.load, message, size, MAX_BYTES, Some(reservation))
        }
    }

    #[test]
    fn the_number_of_messages_is_limited_and_the_whole_queue_is_dropped() {
        let mut w = Fixture::new();
        for i in 0..MAX_QUEUED_MESSAGES {
            w.push(&PEER, i, 0).unwrap();
        }
        let error = w.push(&PEER, 0, 0).unwrap_err();
        assert_eq!(error.messages, MAX_QUEUED_MESSAGES + 1);
        assert!(!w.queues.has_queued(&PEER) && w.queues.is_empty());
    }

    #[test]
    fn bytes_are_limited_but_a_single_message_may_exceed_the_limit() {
        let mut w = Fixture::new();
        w.push(&PEER, 1, 2 * MAX_BYTES).unwrap();
        w.push(&Bytes::from_static(b"other"), 2, 1).unwrap();
        assert!(w.push(&PEER, 3, MAX_BYTES).is_err());
        assert!(
            !w.queues.has_queued(&PEER) && !w.queues.is_empty(),
            "the other peer's queue remains"
        );
        assert_eq!(w.load.bytes(), 1, "dropped messages are not accounted for");
    }

    #[test]
    fn messages_are_sent_in_order_until_the_socket_is_full() {
        let mut w = Fixture::new();
        for i in 0..5 {
            w.push(&PEER, i, 10).unwrap();
        }
        let mut taken = Vec::new();
        w.queues.offer(|m| {
            if taken.len() == 3 {
                return SendOutcome::Full(m);
            }
            taken.push(m);
            SendOutcome::Sent
        });
        assert_eq!(taken, [0, 1, 2]);
        // The socket already buffers many messages of this peer.
        let inside = w.load.reserve(MAX_SOCKET_BYTES);
        w.queues.offer(|_| panic!("the socket's buffer is full"));
        drop(inside);
        w.queues.offer(|m| {
            taken.push(m);
            SendOutcome::Sent
        });
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert!(w.queues.is_empty() && w.load.bytes() == 0);
    }
}
