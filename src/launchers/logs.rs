//! Log files on file systems that this host can read.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Maximum number of bytes read from the end of a log.
const AT_MOST: u64 = 16 * 1024;

/// The last lines after the byte offset `from`, without blank ones; empty if there are none or the
/// file does not exist.
pub fn end(log: &Path, from: u64, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(AT_MOST))))?;
        let mut bytes = Vec::new();
        file.take(AT_MOST).read_to_end(&mut bytes)?;
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
    fn the_end_is_of_this_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old\nnew 1\n\nnew 2\nnew 3\n").unwrap();
        assert_eq!(end(&log, 4, 2), "new 2\nnew 3");
        assert_eq!(end(&log, 4, 9), "new 1\nnew 2\nnew 3");
        assert_eq!(end(&dir.path().join("none"), 0, 9), "");
    }
}
