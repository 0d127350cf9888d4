//! Files that tokio watches.
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches whether a file is readable. Must be called within a tokio runtime.
pub(crate) fn watch_readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd denotes the same open file until it is dropped.
    #[expect(unsafe_code, reason = "tokio has no safe function for owned files")]
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}
