//! Numbers of bytes that the engine has read from a worker's stdout and stderr, in memory shared with the worker.
//!
//! The number of bytes that a worker has written is the number of bytes read plus the bytes in the pipe. The worker queries both one
//! after the other, and the engine may read in between. So the engine increments a sequence number before and after each read; it is
//! odd during the read. If a worker finds the same even number before and after its queries, their results are consistent (a seqlock).
use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Layout for the worker: `"QQQ"` of Python's `struct`.
#[repr(C)]
struct SharedCounts {
    sequence: AtomicU64,
    read: [AtomicU64; 2],
}

#[derive(Debug)]
pub(super) struct ReadCounts(MmapRaw);

impl ReadCounts {
    /// Creates zeroed counts and the memory file for the worker, which cannot write to it.
    pub(super) fn new(name: &str) -> io::Result<(ReadCounts, OwnedFd)> {
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&file, size_of::<SharedCounts>() as i64)?;
        let counts = ReadCounts(MmapRaw::map_raw(&file)?);
        let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&file, FcntlArg::F_ADD_SEALS(size))?;
        // Not supported before Linux 5.1, where a worker could corrupt its own counts.
        let _ = fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE));
        Ok((counts, file))
    }

    fn shared(&self) -> &SharedCounts {
        // SAFETY: mapped as long as `self`, of a file whose size is sealed; all fields are atomic, and zeros are valid.
        #[expect(unsafe_code, reason = "memory shared with another process")]
        unsafe {
            &*self.0.as_ptr().cast()
        }
    }

    /// Calls `read`, which reads from this stream's pipe and returns the number of bytes. There must be one reader at a time.
    pub(super) fn while_reading(&self, stream: usize, read: impl FnOnce() -> usize) -> usize {
        let shared = self.shared();
        let sequence = shared.sequence.load(Ordering::Relaxed);
        shared.sequence.store(sequence.wrapping_add(1), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let count = read();
        if let Some(total) = shared.read.get(stream) {
            total.fetch_add(count as u64, Ordering::SeqCst);
        }
        shared.sequence.store(sequence.wrapping_add(2), Ordering::SeqCst);
        count
    }

    /// Number of bytes read from this stream.
    pub(super) fn read(&self, stream: usize) -> u64 {
        self.shared().read.get(stream).map_or(0, |total| total.load(Ordering::SeqCst))
    }
}
