//! The destination of results: stdout, a file that appears when it is complete, or none.
use crate::cli::CommandError;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) enum Sink {
    Stdout,
    Nowhere,
    File(PartialFile),
}

impl Sink {
    /// Creates a temporary file beside the destination (so that errors are reported early), renamed by [`Sink::finish`].
    pub(crate) fn open(output: Option<&Path>, no_output: bool) -> Result<Sink, CommandError> {
        Ok(match output {
            _ if no_output => Sink::Nowhere,
            Some(path) if path == Path::new("-") => Sink::Stdout,
            Some(path) => Sink::File(PartialFile::create(path)?),
            None => Sink::Stdout,
        })
    }

    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Sink::Stdout)
    }

    pub(crate) fn is_discarded(&self) -> bool {
        matches!(self, Sink::Nowhere)
    }

    /// Lets `write` write to it.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CommandError> {
        match self {
            Sink::Stdout => crate::cli::output::stdout(write),
            Sink::Nowhere => Ok(()),
            Sink::File(file) => file.write(write),
        }
    }

    pub(crate) fn finish(self) -> Result<(), CommandError> {
        match self {
            Sink::Stdout | Sink::Nowhere => Ok(()),
            Sink::File(file) => file.finish(),
        }
    }
}

/// A temporary file until it is complete; removed if dropped before.
#[derive(Debug)]
pub(crate) struct PartialFile {
    writer: Option<BufWriter<File>>,
    /// None for what is not a regular file (a pipe, `/dev/null`): written directly.
    partial: Option<PathBuf>,
    path: PathBuf,
}

impl PartialFile {
    fn create(path: &Path) -> Result<PartialFile, CommandError> {
        let cannot = |path: &Path, error: io::Error| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let what = CommandError::environment(format!("cannot write {}: {error}", path.display()));
            match error.kind() {
                io::ErrorKind::NotFound => what.hint(format!("create the directory first: mkdir -p {}", folder.display())),
                _ => what,
            }
        };
        // Replaces the target of a link, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (file, partial) = match std::fs::metadata(&path) {
            Ok(facts) if facts.is_dir() => {
                return Err(CommandError::usage(format!("--output {} is a directory", path.display())).hint("choose a file in it"));
            }
            Ok(facts) if !facts.is_file() => (File::options().write(true).open(&path), None),
            _ => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
                (File::create(&partial), Some(partial))
            }
        };
        let file = file.map_err(|e| cannot(&path, e))?;
        Ok(PartialFile {
            writer: Some(BufWriter::with_capacity(256 * 1024, file)),
            partial,
            path,
        })
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CommandError> {
        match &mut self.writer {
            Some(writer) => write(writer).map_err(|e| CommandError::environment(format!("cannot write {}: {e}", self.path.display()))),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), CommandError> {
        let mut end = || -> io::Result<()> {
            if let Some(mut writer) = self.writer.take() {
                writer.flush()?;
                if self.partial.is_some() {
                    writer.get_ref().sync_all()?;
                }
            }
            if let Some(partial) = &self.partial {
                std::fs::rename(partial, &self.path)?;
            }
            self.partial = None;
            Ok(())
        };
        end().map_err(|e| CommandError::environment(format!("cannot write {}: {e}", self.path.display())))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = std::fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, "old").unwrap();
        let mut sink = Sink::open(Some(&path), false).unwrap();
        sink.write(|out| out.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        drop(sink);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut sink = Sink::open(Some(&path), false).unwrap();
        sink.write(|out| out.write_all(b"new")).unwrap();
        sink.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unwritable_file_is_reported_at_once() {
        let error = Sink::open(Some(Path::new("/no/such/dir/out")), false).unwrap_err();
        assert_eq!(error.kind.code(), 5);
        assert!(
            error
                .render(false)
                .contains("hint: create the directory first: mkdir -p /no/such/dir"),
            "{}",
            error.render(false)
        );
        assert_eq!(Sink::open(Some(Path::new("/")), false).unwrap_err().kind.code(), 2);
        let mut null = Sink::open(Some(Path::new("/dev/null")), false).unwrap();
        null.write(|out| out.write_all(b"x")).unwrap();
        null.finish().unwrap();
    }
}
