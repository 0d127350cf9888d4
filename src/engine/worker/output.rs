//! Where the worker's stdout and stderr go: pipes, which the engine reads as far as it has room. Who writes faster waits.
//!
//! A position in a stream is how many bytes were written before it. The worker says with its records how far it and its children have
//! written ([`super::counts`]), and the engine reads up to there, so each byte is of the unit that ran when it was written.
use super::counts::Counts;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes of one read.
pub const CHUNK: u64 = 256 << 10;
/// What a pipe holds where nothing is expected: those of a user are counted (pipe(7), pipe-user-pages-soft),
const SMALL_PIPE: i32 = 8 << 10;
/// ... and what it holds for a worker that works, where the system allows it.
const PIPE: i32 = 64 << 10;
/// So few bytes are not worth asking how many there are.
pub const LITTLE: u64 = 4 << 10;
/// So many of the last bytes are kept for last words.
const TAIL: usize = 4096;

mod ioctl {
    nix::ioctl_read_bad!(fionread, nix::libc::FIONREAD, nix::libc::c_int);
}

/// The engine's side of one stream.
#[derive(Debug)]
pub struct OutputPipe {
    pipe: OwnedFd,
    /// Which of the two it is.
    stream: usize,
    counts: Arc<Counts>,
    capacity: u64,
    tail: Vec<u8>,
}

/// Both, and what the worker gets for them.
pub struct Outputs {
    pub pipes: [OutputPipe; 2],
    pub for_worker: ForWorker,
}

pub struct ForWorker {
    pub writers: [OwnedFd; 2],
    /// The memory of [`Counts`].
    pub counts: OwnedFd,
    /// Tells whether something is in one of the pipes, and keeps none of them open.
    pub watch: OwnedFd,
}

impl Outputs {
    /// `name` is that of the memory which the worker and what it forks have in common, and nobody else.
    pub fn new(name: &str) -> io::Result<Outputs> {
        let (counts, shown) = Counts::new(name)?;
        let counts = Arc::new(counts);
        let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let pipe = |stream| -> io::Result<(OutputPipe, OwnedFd)> {
            let (pipe, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(SMALL_PIPE));
            watch.add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            let mut output = OutputPipe {
                pipe,
                stream,
                counts: counts.clone(),
                capacity: 0,
                tail: Vec::new(),
            };
            output.measure();
            Ok((output, writer))
        };
        let ((out, out_writer), (err, err_writer)) = (pipe(0)?, pipe(1)?);
        Ok(Outputs {
            pipes: [out, err],
            for_worker: ForWorker {
                writers: [out_writer, err_writer],
                counts: shown,
                watch: watch.0,
            },
        })
    }
}

impl OutputPipe {
    fn measure(&mut self) {
        self.capacity = fcntl(&self.pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |size| size.max(0) as u64);
    }

    /// The worker is going to work.
    pub fn enlarge(&mut self) {
        let _ = fcntl(&self.pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
        self.measure();
    }

    /// So much was read.
    fn read(&self) -> u64 {
        self.counts.read(self.stream)
    }

    /// What is in the pipe.
    fn waiting(&self) -> u64 {
        let mut count: libc::c_int = 0;
        #[expect(unsafe_code, reason = "FIONREAD writes an int")]
        let known = unsafe { ioctl::fionread(self.pipe.as_raw_fd(), &mut count) };
        known.map_or(0, |_| count.max(0) as u64)
    }

    /// How much was written.
    pub fn size(&self) -> u64 {
        self.read() + self.waiting()
    }

    /// Nobody can write into it any more.
    pub fn is_closed(&self) -> bool {
        let mut ends = [PollFd::new(self.pipe.as_fd(), PollFlags::empty())];
        let known = poll(&mut ends, PollTimeout::ZERO);
        known.is_ok()
            && ends
                .iter()
                .any(|end| end.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
    }

    /// Whoever writes may have to wait soon.
    pub fn is_filling(&self) -> bool {
        self.waiting() >= self.capacity / 4
    }

    /// So many bytes up to `end` (or by now) were not read yet. Of a few it is believed.
    pub fn unread_to(&self, end: Option<u64>) -> u64 {
        let promised = end.map_or(u64::MAX, |end| end.saturating_sub(self.read()));
        match promised <= LITTLE {
            true => promised,
            false => promised.min(self.waiting()),
        }
    }

    /// The next [`CHUNK`] of what was written up to `end` (or by now) and not read yet.
    pub fn read_to(&mut self, end: Option<u64>) -> Bytes {
        let length = self.unread_to(end).min(CHUNK);
        if length == 0 {
            return Bytes::new();
        }
        let mut bytes = vec![0; length as usize];
        let mut done = 0;
        while let Some(room) = bytes.get_mut(done..).filter(|room| !room.is_empty()) {
            let pipe = self.pipe.as_fd();
            let mut ended = false;
            done += self.counts.while_reading(self.stream, || match nix::unistd::read(pipe, room) {
                Ok(count) => {
                    ended = count == 0;
                    count
                }
                Err(error) => {
                    ended = error != Errno::EINTR;
                    0
                }
            });
            if ended {
                break;
            }
        }
        bytes.truncate(done);
        self.keep_tail(&bytes);
        bytes.into()
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        if self.stream == 0 {
            return;
        }
        let new = bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or_default();
        let surplus = (self.tail.len() + new.len()).saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.tail.extend_from_slice(new);
    }

    /// The last bytes that were read of stderr, as text.
    pub fn last_words(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

impl AsFd for OutputPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
