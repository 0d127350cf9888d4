//! Which workers have written something to stdout or stderr: each is reported once, until it is asked for again.
//!
//! Who prints often would wake the engine each time otherwise.
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct OutputWatch(AsyncFd<Watched>);

struct Watched(Epoll);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

fn once(number: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, number)
}

impl OutputWatch {
    /// Must be called within a tokio runtime.
    pub fn new() -> io::Result<OutputWatch> {
        let watched = Watched(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        #[expect(unsafe_code, reason = "an epoll descriptor is the same file until it is dropped")]
        let registered = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
        Ok(OutputWatch(registered))
    }

    /// Until the pipe is closed.
    pub fn add(&self, number: u64, pipe: impl AsFd) -> io::Result<()> {
        Ok(self.0.get_ref().0.add(pipe, once(number))?)
    }

    /// Reports it again.
    pub fn rearm(&self, number: u64, pipe: impl AsFd) {
        let _ = self.0.get_ref().0.modify(pipe, &mut once(number));
    }

    /// Numbers of those that have written.
    pub async fn written(&self) -> Vec<u64> {
        // What is always ready must not keep the task from giving way.
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
