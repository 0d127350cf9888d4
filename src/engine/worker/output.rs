//! The worker's stdout and stderr: pipes, which the engine reads as far as buffer space allows. A faster writer blocks.
//!
//! A position in a stream is the number of bytes before it. The worker's records report the positions that the worker and its
//! children have reached ([`super::counts`]), and the engine reads up to these. So each byte is assigned to the unit that was running
//! when it was written.
use super::counts::ReadCounts;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes of one read.
pub(crate) const CHUNK: u64 = 256 << 10;
/// Capacity of the pipe of an idle worker: the total of a user's pipes is limited (pipe(7), pipe-user-pages-soft),
const IDLE_PIPE: i32 = 8 << 10;
/// ... and of a working one, if the system permits it.
const WORKING_PIPE: i32 = 64 << 10;
/// Up to this many bytes, checking how many are in the pipe is not worthwhile.
pub(crate) const SMALL_OUTPUT: u64 = 4 << 10;
/// Number of bytes kept of the last stderr output.
const TAIL_BYTES: usize = 4096;

/// The engine's side of one stream.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    pipe: OwnedFd,
    /// 0 for stdout, 1 for stderr.
    stream: usize,
    counts: Arc<ReadCounts>,
    capacity: u64,
    tail: Vec<u8>,
}

/// Both streams, and the worker's side of them.
pub(crate) struct Outputs {
    pub pipes: [OutputPipe; 2],
    pub for_worker: ForWorker,
}

pub(crate) struct ForWorker {
    pub writers: [OwnedFd; 2],
    /// The memory of [`ReadCounts`].
    pub counts: OwnedFd,
    /// An epoll that is readable when one of the pipes has data, without keeping a pipe open.
    pub watch: OwnedFd,
}

impl Outputs {
    /// `name` is the name of the memory that only the worker and its forks map.
    pub(crate) fn new(name: &str) -> io::Result<Outputs> {
        let (counts, shown) = ReadCounts::new(name)?;
        let counts = Arc::new(counts);
        let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let pipe = |stream| -> io::Result<(OutputPipe, OwnedFd)> {
            let (pipe, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(IDLE_PIPE));
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

    /// Enlarges the pipe for a worker that is about to receive units.
    pub(crate) fn enlarge(&mut self) {
        let _ = fcntl(&self.pipe, FcntlArg::F_SETPIPE_SZ(WORKING_PIPE));
        self.measure();
    }

    /// Number of bytes read.
    fn read(&self) -> u64 {
        self.counts.read(self.stream)
    }

    /// Number of bytes in the pipe.
    fn buffered(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).unwrap_or_default()
    }

    /// Number of bytes written.
    pub(crate) fn size(&self) -> u64 {
        self.read() + self.buffered()
    }

    /// Returns whether all writers have closed the pipe.
    pub(crate) fn is_closed(&self) -> bool {
        let mut ends = [PollFd::new(self.pipe.as_fd(), PollFlags::empty())];
        let result = poll(&mut ends, PollTimeout::ZERO);
        result.is_ok()
            && ends
                .iter()
                .any(|end| end.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
    }

    /// Returns whether the pipe is filling up, so that a writer may block soon.
    pub(crate) fn is_filling(&self) -> bool {
        self.buffered() >= self.capacity / 4
    }

    /// Number of unread bytes before `end` (None: before the current end). A small number is not checked against the pipe.
    pub(crate) fn unread_to(&self, end: Option<u64>) -> u64 {
        let expected = end.map_or(u64::MAX, |end| end.saturating_sub(self.read()));
        match expected <= SMALL_OUTPUT {
            true => expected,
            false => expected.min(self.buffered()),
        }
    }

    /// Reads up to [`CHUNK`] unread bytes before `end` (None: before the current end).
    pub(crate) fn read_to(&mut self, end: Option<u64>) -> Bytes {
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
        let new = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let surplus = (self.tail.len() + new.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend_from_slice(new);
    }

    /// The last bytes read from stderr, as text.
    pub(crate) fn last_output(&self) -> String {
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
