//! How much the engine has read of a worker's stdout and stderr, in memory that the worker sees.
//!
//! How much a worker has written is what was read and what is still in the pipe. Both are asked for one after the other, and the engine
//! may read in between; so the engine changes a sequence number before and after each read. It is odd meanwhile. A worker that finds the
//! same even number before and after knows that what it was told in between belongs together.
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// As the worker reads it: `"QQQ"` of Python's `struct`.
#[repr(C)]
#[derive(Debug)]
struct Words {
    sequence: AtomicU64,
    read: [AtomicU64; 2],
}

#[derive(Debug)]
pub struct Counts {
    words: NonNull<Words>,
}

#[expect(unsafe_code, reason = "it is memory of atomic words, and nobody else unmaps it")]
unsafe impl Send for Counts {}
#[expect(unsafe_code, reason = "the words are atomic")]
unsafe impl Sync for Counts {}

impl Counts {
    /// Zeros, and the file in which the worker finds them. It can be written by nobody else.
    pub fn new(name: &str) -> io::Result<(Counts, OwnedFd)> {
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&file, size_of::<Words>() as i64)?;
        let length = NonZeroUsize::new(size_of::<Words>()).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        #[expect(unsafe_code, reason = "new memory, of a file whose size is sealed below")]
        let words = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file.as_fd(), 0) }?.cast::<Words>();
        let counts = Counts { words };
        let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&file, FcntlArg::F_ADD_SEALS(size))?;
        // Before Linux 5.1 the worker's own code could change them, to its own harm.
        let _ = fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE));
        Ok((counts, file))
    }

    fn words(&self) -> &Words {
        #[expect(unsafe_code, reason = "it is mapped until it is dropped, and zeros are valid")]
        unsafe {
            self.words.as_ref()
        }
    }

    /// `read` reads from this stream's pipe, and returns how many bytes that were. There is one reader at a time.
    pub fn while_reading(&self, stream: usize, read: impl FnOnce() -> usize) -> usize {
        let words = self.words();
        let sequence = words.sequence.load(Ordering::Relaxed);
        words.sequence.store(sequence.wrapping_add(1), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let count = read();
        if let Some(total) = words.read.get(stream) {
            total.fetch_add(count as u64, Ordering::SeqCst);
        }
        words.sequence.store(sequence.wrapping_add(2), Ordering::SeqCst);
        count
    }

    /// How much was read of this stream.
    pub fn read(&self, stream: usize) -> u64 {
        self.words().read.get(stream).map_or(0, |total| total.load(Ordering::SeqCst))
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "mapped in `new`, with this length")]
        let _ = unsafe { munmap(self.words.cast(), size_of::<Words>()) };
    }
}
