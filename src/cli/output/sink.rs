//! The destination of data: stdout, or the file of `--output`.
use super::super::error::CommandError;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

pub(crate) struct Sink {
    out: BufWriter<Box<dyn Write>>,
    file: Option<PathBuf>,
}

impl Sink {
    /// `-` is stdout too.
    pub(crate) fn open(file: Option<&Path>) -> Result<Sink, CommandError> {
        let file = file.filter(|path| *path != Path::new("-"));
        let out: Box<dyn Write> = match file {
            None => Box::new(std::io::stdout().lock()),
            Some(path) => {
                Box::new(File::create(path).map_err(|e| CommandError::environment(format!("cannot write to {}: {e}", path.display())))?)
            }
        };
        Ok(Sink {
            out: BufWriter::with_capacity(64 * 1024, out),
            file: file.map(Path::to_path_buf),
        })
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Writes with `write`; errors name the destination.
    pub(crate) fn put(&mut self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<(), CommandError> {
        write(&mut self.out).map_err(|e| self.failed(e))
    }

    pub(crate) fn text(&mut self, text: &str) -> Result<(), CommandError> {
        self.put(|out| out.write_all(text.as_bytes()))
    }

    /// Flushes the output.
    pub(crate) fn finish(mut self) -> Result<(), CommandError> {
        self.out.flush().map_err(|e| self.failed(e))
    }

    fn failed(&self, error: std::io::Error) -> CommandError {
        match &self.file {
            None => CommandError::output(error),
            Some(path) => CommandError::environment(format!("cannot write to {}: {error}", path.display())),
        }
    }
}
