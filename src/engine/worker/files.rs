//! Where the worker's stdout and stderr go: files in memory, written by the worker, read here, emptied behind the reader.
use crate::engine::core::output::Pieces;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// Of what was written between two looks, so many bytes are read at either end.
const EITHER_END: u64 = 2 << 20;
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

    /// What was written up to `end` (or by now) and not read yet.
    pub fn read_to(&mut self, end: Option<u64>) -> Pieces {
        let size = self.size();
        if size < self.read {
            // Someone has opened it as /dev/stdout and cut it off.
            (self.read, self.freed) = (0, 0);
        }
        let end = end.unwrap_or(size).min(size);
        if end <= self.read {
            return Pieces::default();
        }
        let length = end - self.read;
        let pieces = if length <= 2 * EITHER_END {
            Pieces::whole(self.range(self.read, length))
        } else {
            Pieces {
                head: self.range(self.read, EITHER_END),
                cut: length - 2 * EITHER_END,
                tail: self.range(end - EITHER_END, EITHER_END),
            }
        };
        self.read = end;
        if self.read - self.freed >= STEP {
            let upto = self.read / STEP * STEP;
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, self.freed as i64, (upto - self.freed) as i64);
            self.freed = upto;
        }
        pieces
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
    fn what_is_written_is_read_once_and_in_bounds() {
        let mut output = OutputFile::new("test").unwrap();
        let mut writer = output.file.try_clone().unwrap();
        writer.write_all(b"one").unwrap();
        assert_eq!(output.read_to(Some(2)), Pieces::whole(b"on".to_vec()));
        assert_eq!(output.read_to(None), Pieces::whole(b"e".to_vec()));
        assert!(output.read_to(None).is_empty());
        writer.write_all(&vec![b'x'; 10 << 20]).unwrap();
        let pieces = output.read_to(None);
        assert_eq!(pieces.head.len() as u64 + pieces.cut + pieces.tail.len() as u64, 10 << 20);
        assert_eq!(pieces.tail.len() as u64, EITHER_END);
        use std::os::unix::fs::MetadataExt;
        assert!(output.file.metadata().unwrap().blocks() * 512 < 2 << 20, "memory was given back");
        writer.write_all(b"end").unwrap();
        assert_eq!(output.last_words(5), "xxend");
    }

    #[test]
    fn a_file_that_was_cut_off_is_read_from_its_start() {
        let mut output = OutputFile::new("test").unwrap();
        output.file.try_clone().unwrap().write_all(b"12345").unwrap();
        output.read_to(None);
        output.file.set_len(0).unwrap();
        output.file.try_clone().unwrap().write_all(b"67").unwrap();
        assert_eq!(output.read_to(None), Pieces::whole(b"67".to_vec()));
    }
}
