//! Reports workers that have written to stdout or stderr: each one once, until it is rearmed.
//!
//! Otherwise every print would wake the engine.
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) struct OutputWatch(AsyncFd<WatchedEpoll>);

struct WatchedEpoll(Epoll);

impl AsRawFd for WatchedEpoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

fn once(number: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, number)
}

impl OutputWatch {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<OutputWatch> {
        let watched = WatchedEpoll(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        #[expect(unsafe_code, reason = "an epoll descriptor is the same file until it is dropped")]
        let registered = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
        Ok(OutputWatch(registered))
    }

    /// Watches a pipe until it is closed.
    pub(crate) fn add(&self, number: u64, pipe: impl AsFd) -> io::Result<()> {
        Ok(self.0.get_ref().0.add(pipe, once(number))?)
    }

    /// Rearms a pipe that was reported.
    pub(crate) fn rearm(&self, number: u64, pipe: impl AsFd) {
        let _ = self.0.get_ref().0.modify(pipe, &mut once(number));
    }

    /// Waits for output; returns the numbers of workers that have written.
    pub(crate) async fn written(&self) -> Vec<u64> {
        // A source that is always ready must not starve other tasks.
        tokio::task::coop::consume_budget().await;
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            let mut events = [EpollEvent::empty(); 32];
            match self.0.get_ref().0.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count @ 1..) => return events.iter().take(count).map(EpollEvent::data).collect(),
                _ => ready.clear_ready(),
            }
        }
    }
}
