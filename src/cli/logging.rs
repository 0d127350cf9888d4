//! The log of the daemons: to stderr, with times, one line per event.
//!
//! A log that cannot be written (a full disk, a closed terminal) never stops the process. Lines are dropped, and their number is
//! logged when writing succeeds again.
use crate::launchers::supervisor::guard;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Rust's exit code for a panic of the main thread: the supervisor restarts such a process.
const PANICKED: i32 = 101;

/// `level` is a level (`info`) or a filter (`info,pcluster::controller=debug`).
pub(crate) fn start(level: &str) {
    start_with(level, io::stderr());
}

/// The same, appended to a private file.
pub(crate) fn start_in(level: &str, path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    start_with(level, file);
    Ok(())
}

fn start_with(level: &str, destination: impl Write + Send + 'static) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(Log::new(destination))
        .log_internal_errors(false)
        .with_ansi(false)
        .try_init();
    end_with_any_thread();
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Exits on any panic: a daemon without one of its threads would be alive but useless, and its supervisor restarts it only when
/// it exits.
#[expect(clippy::disallowed_methods, reason = "no error can travel from here to main")]
fn end_with_any_thread() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_string();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(thread, %backtrace, "exiting because of a bug in pcluster: {panic}");
        guard::exiting_by_panic(PANICKED as u8);
        std::process::exit(PANICKED);
    }));
}

struct Log<W>(Mutex<Lines<W>>);

struct Lines<W> {
    destination: W,
    /// Lines dropped since the last successful write.
    dropped: u64,
    /// The last write ended within a line.
    torn: bool,
}

impl<W: Write> Log<W> {
    fn new(destination: W) -> Log<W> {
        Log(Mutex::new(Lines {
            destination,
            dropped: 0,
            torn: false,
        }))
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Log<W> {
    type Writer = Line<'a, W>;
    fn make_writer(&'a self) -> Line<'a, W> {
        // A thread that panicked while logging has only left an incomplete line.
        Line(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Line<'a, W>(MutexGuard<'a, Lines<W>>);

impl<W: Write> Write for Line<'_, W> {
    /// Always accepts everything.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.log(line);
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Lines<W> {
    fn log(&mut self, line: &[u8]) {
        let mut text = Vec::new();
        if self.torn {
            text.push(b'\n');
        }
        if self.dropped > 0 {
            text.extend_from_slice(format!("{} lines of the log were dropped\n", self.dropped).as_bytes());
        }
        text.extend_from_slice(line);
        match self.write_all(&text) {
            true => self.dropped = 0,
            false => self.dropped += 1,
        }
    }

    fn write_all(&mut self, mut text: &[u8]) -> bool {
        while !text.is_empty() {
            match self.destination.write(text) {
                Ok(count) if count > 0 => {
                    self.torn = text.get(count - 1) != Some(&b'\n');
                    text = text.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A disk with space for this many bytes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(String, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let count = bytes.len().min(disk.1);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= count;
            disk.0.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported() {
        let disk = Disk::default();
        disk.0.lock().unwrap().1 = 10;
        let log = Log::new(disk.clone());
        let write = |line: &str| log.make_writer().write_all(line.as_bytes()).unwrap();
        write("first\n");
        write("second\n");
        write("third\n");
        disk.0.lock().unwrap().1 = 1000;
        write("fourth\n");
        write("fifth\n");
        assert_eq!(
            disk.0.lock().unwrap().0,
            "first\nseco\n2 lines of the log were dropped\nfourth\nfifth\n"
        );
    }

    #[test]
    fn tracing_continues_if_its_output_fails() {
        let disk = Disk::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Log::new(disk.clone()))
            .log_internal_errors(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("dropped");
            disk.0.lock().unwrap().1 = 1000;
            tracing::warn!("space is available again");
        });
        let text = disk.0.lock().unwrap().0.clone();
        assert!(text.starts_with("1 lines of the log were dropped\n"), "{text}");
        assert!(text.ends_with("space is available again\n"), "{text}");
    }
}
