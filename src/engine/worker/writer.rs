//! Writes to the worker's pipe: immediately what fits, the rest on a thread.
use bytes::{Buf, Bytes};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

/// Maximum number of slices in one call (Linux: `IOV_MAX`).
const MAX_SLICES: usize = 1024;

pub(super) struct FrameWriter {
    pipe: File,
    /// Number of batches queued on the thread: later frames must be queued behind them.
    queued: Arc<AtomicUsize>,
    /// Queue of the thread, which is started when first needed.
    rest: Option<mpsc::Sender<VecDeque<Bytes>>>,
}

impl FrameWriter {
    /// Wraps the non-blocking write end of a pipe.
    pub(super) fn new(pipe: File) -> FrameWriter {
        FrameWriter {
            pipe,
            queued: Arc::new(AtomicUsize::new(0)),
            rest: None,
        }
    }

    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    pub(super) fn send(&mut self, frames: Vec<Bytes>) {
        let mut frames = VecDeque::from(frames);
        if self.queued.load(Ordering::Acquire) == 0 && !matches!(write(&mut self.pipe, &mut frames), Ok(false)) {
            // Everything is written, or the worker has ended, which its exit event reports.
            return;
        }
        self.queued.fetch_add(1, Ordering::AcqRel);
        if self.rest.is_none() {
            self.rest = self.start().ok();
        }
        match &self.rest {
            Some(rest) => drop(rest.send(frames)),
            // If the system cannot create a thread, the engine blocks.
            None => {
                write_all(&mut self.pipe, frames);
                self.queued.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn start(&self) -> io::Result<mpsc::Sender<VecDeque<Bytes>>> {
        let (rest, to_write) = mpsc::channel();
        let (mut end, count) = (self.pipe.try_clone()?, self.queued.clone());
        std::thread::Builder::new()
            .name("worker-writer".into())
            .spawn(move || write_rest(&mut end, &to_write, &count))?;
        Ok(rest)
    }
}

fn write_rest(pipe: &mut File, rest: &mpsc::Receiver<VecDeque<Bytes>>, queued: &AtomicUsize) {
    for frames in rest {
        write_all(pipe, frames);
        queued.fetch_sub(1, Ordering::AcqRel);
    }
}

fn write_all(pipe: &mut File, mut frames: VecDeque<Bytes>) {
    while let Ok(false) = write(pipe, &mut frames) {
        let mut writable = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut writable, PollTimeout::NONE);
    }
}

/// Writes what fits into the pipe and leaves the rest; returns whether everything was written.
fn write(pipe: &mut File, frames: &mut VecDeque<Bytes>) -> io::Result<bool> {
    loop {
        while frames.front().is_some_and(Bytes::is_empty) {
            frames.pop_front();
        }
        if frames.is_empty() {
            return Ok(true);
        }
        let slices: Vec<IoSlice<'_>> = frames.iter().take(MAX_SLICES).map(|part| IoSlice::new(part)).collect();
        match pipe.write_vectored(&slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => remove_written(frames, count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

fn remove_written(frames: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(front) = frames.front_mut() {
        if front.len() > count {
            front.advance(count);
            return;
        }
        count -= front.len();
        frames.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use std::io::Read;

    #[test]
    fn frames_that_do_not_fit_are_written_later_in_order() {
        let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        nix::fcntl::fcntl(to.as_fd(), nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut writer = FrameWriter::new(File::from(to));
        let piece = |i: u32| Bytes::from(vec![i as u8; 50_000 + i as usize]);
        for i in (0..40).step_by(2) {
            writer.send(vec![piece(i), Bytes::new(), piece(i + 1)]);
        }
        drop(writer);
        let mut all = Vec::new();
        File::from(from).read_to_end(&mut all).unwrap();
        assert!(all == (0..40).flat_map(piece).collect::<Vec<u8>>());
    }
}
