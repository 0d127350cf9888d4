//! The interpreter's own stdout and stderr: a file in memory. The interpreter runs no user code, and writes only if it fails to start.
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

#[derive(Debug)]
pub(super) struct OutputFile {
    file: File,
}

impl OutputFile {
    pub(super) fn new(name: &str) -> io::Result<OutputFile> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        // All writers append.
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND))?;
        Ok(OutputFile { file: fd.into() })
    }

    pub(super) fn for_child(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(OwnedFd::from(self.file.try_clone()?)))
    }

    /// The last bytes, as text.
    pub(super) fn last_output(&self, max_bytes: usize) -> String {
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        let from = size.saturating_sub(max_bytes as u64);
        let mut bytes = vec![0; (size - from) as usize];
        match self.file.read_exact_at(&mut bytes, from) {
            Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn last_output_is_the_end_of_the_file() {
        let output = OutputFile::new("test").unwrap();
        assert_eq!(output.last_output(10), "");
        output.file.try_clone().unwrap().write_all(b"first, last").unwrap();
        assert_eq!(output.last_output(4), "last");
        assert_eq!(output.last_output(100), "first, last");
    }
}
