//! Where the worker's stdout and stderr go: files in memory, written by the worker, read here, emptied behind the reader.
use bytes::Bytes;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// Bytes of one read.
pub const CHUNK: u64 = 256 << 10;
/// Memory is given back in steps of so many bytes.
const STEP: u64 = 1 << 20;

#[derive(Debug)]
pub struct OutputFile {
    file: File,
    read: u64,
    freed: u64,
}

impl OutputFile {
    pub fn new(name: &str) -> io::Result<OutputFile> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        // Whoever writes, writes at the end.
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND))?;
        Ok(OutputFile {
            file: fd.into(),
            read: 0,
            freed: 0,
        })
    }

    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn for_child(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(OwnedFd::from(self.file.try_clone()?)))
    }

    /// How much was written.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// So many bytes up to `end` (or by now) were not read yet.
    pub fn unread_to(&mut self, end: Option<u64>) -> u64 {
        let size = self.size();
        if size < self.read {
            // Someone has opened it as /dev/stdout and cut it off.
            (self.read, self.freed) = (0, 0);
        }
        end.unwrap_or(size).min(size).saturating_sub(self.read)
    }

    /// The next [`CHUNK`] of what was written up to `end` (or by now) and not read yet.
    pub fn read_to(&mut self, end: Option<u64>) -> Bytes {
        let length = self.unread_to(end).min(CHUNK);
        if length == 0 {
            return Bytes::new();
        }
        let bytes = self.range(self.read, length);
        let end = self.read + length;
        self.read = end;
        if self.read - self.freed >= STEP {
            let upto = self.read / STEP * STEP;
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, self.freed as i64, (upto - self.freed) as i64);
            self.freed = upto;
        }
        bytes.into()
    }

    /// The last bytes, read or not, as text.
    pub fn last_words(&self, most: u64) -> String {
        let size = self.size();
        let from = size.saturating_sub(most).max(self.freed);
        String::from_utf8_lossy(&self.range(from, size.saturating_sub(from))).into_owned()
    }

    fn range(&self, from: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], from + done as u64) {
                Ok(count @ 1..) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        bytes.truncate(done);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_written_is_read_once_in_chunks_and_given_back() {
        let mut output = OutputFile::new("test").unwrap();
        let mut writer = output.file.try_clone().unwrap();
        writer.write_all(b"one").unwrap();
        assert_eq!(output.read_to(Some(2)), "on");
        assert_eq!(output.read_to(None), "e");
        assert!(output.read_to(None).is_empty());
        let long: Vec<u8> = (0..10 << 20).map(|at| (at / 7) as u8).collect();
        writer.write_all(&long).unwrap();
        let mut read = Vec::new();
        while output.unread_to(None) > 0 {
            let chunk = output.read_to(None);
            assert!(chunk.len() as u64 <= CHUNK);
            read.extend_from_slice(&chunk);
        }
        assert!(read == long);
        use std::os::unix::fs::MetadataExt;
        assert!(output.file.metadata().unwrap().blocks() * 512 < 2 << 20, "memory was given back");
        writer.write_all(b"end").unwrap();
        assert_eq!(output.last_words(3), "end");
    }

    #[test]
    fn a_file_that_was_cut_off_is_read_from_its_start() {
        let mut output = OutputFile::new("test").unwrap();
        output.file.try_clone().unwrap().write_all(b"12345").unwrap();
        output.read_to(None);
        output.file.set_len(0).unwrap();
        output.file.try_clone().unwrap().write_all(b"67").unwrap();
        assert_eq!(output.read_to(None), "67");
    }
}
