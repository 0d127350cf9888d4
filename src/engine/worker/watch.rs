//! Reports workers that have written to stdout or stderr: each one once, until it is rearmed.
//!
//! Otherwise every print would wake the engine.
use crate::sys::async_fd::watch_readable;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

pub(crate) struct OutputWatch {
    epoll: Epoll,
    /// The same epoll.
    ready: AsyncFd<OwnedFd>,
}

fn once(number: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, number)
}

impl OutputWatch {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<OutputWatch> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let ready = watch_readable(epoll.0.try_clone()?)?;
        Ok(OutputWatch { epoll, ready })
    }

    /// Watches a pipe until it is closed.
    pub(crate) fn add(&self, number: u64, pipe: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.add(pipe, once(number))?)
    }

    /// Rearms a pipe that was reported.
    pub(crate) fn rearm(&self, number: u64, pipe: impl AsFd) {
        let _ = self.epoll.modify(pipe, &mut once(number));
    }

    /// Waits for output; returns the numbers of workers that have written.
    pub(crate) async fn written(&self) -> Vec<u64> {
        // A source that is always ready must not starve other tasks.
        tokio::task::coop::consume_budget().await;
        loop {
            let Ok(mut ready) = self.ready.readable().await else {
                return std::future::pending().await;
            };
            let mut events = [EpollEvent::empty(); 32];
            match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count @ 1..) => return events.iter().take(count).map(EpollEvent::data).collect(),
                _ => ready.clear_ready(),
            }
        }
    }
}
