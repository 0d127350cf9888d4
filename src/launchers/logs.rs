//! Log files on file systems that this host can read.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Maximum number of bytes read from the end of a log.
const MAX_TAIL_BYTES: u64 = 16 * 1024;

/// The last lines after the byte offset `from`, without blank ones; empty if there are none or the
/// file does not exist.
pub(crate) fn tail(log: &Path, from: u64, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(MAX_TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(MAX_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_contains_only_the_output_of_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old\nnew 1\n\nnew 2\nnew 3\n").unwrap();
        assert_eq!(tail(&log, 4, 2), "new 2\nnew 3");
        assert_eq!(tail(&log, 4, 9), "new 1\nnew 2\nnew 3");
        assert_eq!(tail(&dir.path().join("none"), 0, 9), "");
    }
}
