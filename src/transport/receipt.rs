//! Reports when a socket releases a message: when it was written to its connection, or the
//! connection ended.
use bytes::Bytes;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const UNSENT: u8 = 0;
const SENT: u8 = 1;
const RELEASED: u8 = 2;

/// The sender's half: reports whether the socket accepted the message at all.
pub(crate) struct Receipt(Arc<ReceiptState>);

struct ReceiptState {
    state: AtomicU8,
    note: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ReceiptState {
    fn call(&self) {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(note) = note {
            note();
        }
    }
}

/// The same bytes. `note` is called once, when the last copy is released and [`Receipt::sent`] was
/// called, in either order. With CURVE that is just before the message is written to its
/// connection.
pub(crate) fn with_receipt(bytes: Bytes, note: impl FnOnce() + Send + 'static) -> (Bytes, Receipt) {
    struct Owner(Bytes, Arc<ReceiptState>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            if self.1.state.fetch_or(RELEASED, Ordering::AcqRel) & SENT != 0 {
                self.1.call();
            }
        }
    }
    let shared = Arc::new(ReceiptState {
        state: AtomicU8::new(UNSENT),
        note: Mutex::new(Some(Box::new(note))),
    });
    (Bytes::from_owner(Owner(bytes, shared.clone())), Receipt(shared))
}

impl Receipt {
    /// The socket has accepted the message.
    pub(crate) fn sent(self) {
        if self.0.state.fetch_or(SENT, Ordering::AcqRel) & RELEASED != 0 {
            self.0.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_callback_runs_once_and_only_if_the_message_was_accepted() {
        let count = Arc::new(AtomicUsize::new(0));
        let make = || {
            let count = count.clone();
            with_receipt(Bytes::from_static(b"header"), move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        let (bytes, receipt) = make();
        assert_eq!(bytes, "header");
        let copy = bytes.clone();
        receipt.sent();
        drop(bytes);
        assert_eq!(count.load(Ordering::Relaxed), 0, "a copy remains");
        drop(copy);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let (bytes, receipt) = make();
        drop(bytes);
        assert_eq!(count.load(Ordering::Relaxed), 1, "the socket may not have accepted it");
        receipt.sent();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        let (bytes, receipt) = make();
        drop(receipt);
        drop(bytes);
        assert_eq!(count.load(Ordering::Relaxed), 2, "refused");
    }
}
