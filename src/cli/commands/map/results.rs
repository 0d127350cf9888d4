//! The output of results: written, or kept for a reduction.
use super::follow::LongOutputs;
use super::reduce::Values;
use crate::cli::CommandError;
use crate::cli::progress::Progress;
use crate::cli::values::sink::Sink;
use crate::cli::values::{Format, Style, lone_pickle, value_line};
use crate::model::output::Stream;
use crate::model::task::TaskRow;
use std::io::Write;
use std::path::PathBuf;

/// Options for the output of results.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Results")]
pub(crate) struct ResultOptions {
    /// Write results in this format
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write results to this file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Do not write results (pcluster results shows them)
    #[arg(long, conflicts_with_all = ["output", "format"])]
    pub no_output: bool,
    /// Fold the values in input order with an associative function of two values; write the result
    #[arg(long, value_name = "FN", conflicts_with = "detach")]
    pub reduce: Option<String>,
    /// With --reduce: skip failed tasks
    #[arg(long, requires = "reduce")]
    pub skip_failed: bool,
}

pub(crate) struct Results {
    pub sink: Sink,
    style: Style,
    /// stdout is a terminal: the progress bar is hidden while writing.
    terminal: bool,
    /// Keeps the values for a reduction instead.
    pub fold: Option<Values>,
}

impl Results {
    /// Opens the output, before anything is submitted.
    pub(crate) fn open(options: &ResultOptions, command: bool, json: bool, terminal: bool) -> Result<Results, CommandError> {
        if options.reduce.is_some() && options.format == Some(Format::Csv) {
            return Err(
                CommandError::usage("--reduce writes a single value, which cannot be CSV").hint("use --format jsonl or --format pickle")
            );
        }
        let style = Style::of(options.format, command, json && options.reduce.is_none());
        let sink = Sink::open(options.output.as_deref(), options.no_output)?;
        if matches!(style, Style::Pickle { .. }) && sink.is_stdout() && terminal {
            return Err(CommandError::usage("--format pickle writes binary data, and stdout is a terminal")
                .hint("write to a file: --output results.pickle"));
        }
        Ok(Results {
            sink,
            style,
            terminal,
            fold: options.reduce.is_some().then(Values::default),
        })
    }

    /// Whether results are written to a file.
    pub(crate) fn is_file(&self) -> bool {
        !self.sink.is_stdout() && !self.sink.is_discarded()
    }

    /// Whether values that JSON cannot represent exactly are written as a rendering.
    pub(crate) fn shows_readable(&self) -> bool {
        !self.sink.is_discarded() && !matches!(self.style, Style::Pickle { .. })
    }

    pub(crate) fn begin(&mut self) -> Result<(), CommandError> {
        match self.fold {
            Some(_) => Ok(()),
            None => self.sink.write(|out| self.style.begin(out)),
        }
    }

    pub(crate) fn take(&mut self, progress: &Progress, rows: Vec<TaskRow>) -> Result<(), CommandError> {
        if let Some(values) = &mut self.fold {
            rows.into_iter().for_each(|row| values.add(row));
            return Ok(());
        }
        if rows.is_empty() || self.sink.is_discarded() {
            return Ok(());
        }
        let suspend = self.style == Style::Output || (self.terminal && self.sink.is_stdout());
        let mut write = || {
            self.sink.write(|out| {
                let mut errors = std::io::stderr();
                rows.iter().try_for_each(|row| self.style.write(row, out, &mut errors))
            })
        };
        if suspend { progress.suspend(write) } else { write() }
    }

    /// How to handle outputs that are too long to be part of their rows.
    pub(crate) fn long_outputs(&self) -> LongOutputs {
        match self.style {
            _ if self.fold.is_some() || self.sink.is_discarded() => LongOutputs::Left,
            Style::Output => LongOutputs::Streamed,
            Style::Values | Style::Csv { command: false } | Style::Pickle { command: false } => LongOutputs::Left,
            _ => LongOutputs::Fetched,
        }
    }

    /// Whether long values are written.
    pub(crate) fn wants_values(&self) -> bool {
        self.fold.is_none() && !self.sink.is_discarded()
    }

    /// Whether inputs are written.
    pub(crate) fn wants_inputs(&self) -> bool {
        self.wants_values() && matches!(self.style, Style::Rows | Style::Csv { .. })
    }

    /// Writes a chunk of a command's output.
    pub(crate) fn take_piece(&mut self, progress: &Progress, stream: Stream, bytes: &[u8]) -> Result<(), CommandError> {
        progress.suspend(|| match stream {
            Stream::Stdout => self.sink.write(|out| out.write_all(bytes)),
            Stream::Stderr | Stream::Value => {
                let _ = std::io::stderr().write_all(bytes);
                Ok(())
            }
        })
    }

    /// Writes the reduced value.
    pub(crate) fn write_reduced(mut self, row: &TaskRow) -> Result<(), CommandError> {
        let style = self.style;
        self.sink.write(|out| match style {
            Style::Pickle { .. } => lone_pickle(row, out),
            _ => writeln!(out, "{}", value_line(row)),
        })?;
        self.sink.finish()
    }

    pub(crate) fn end(mut self) -> Result<(), CommandError> {
        self.sink.write(|out| self.style.end(out))?;
        self.sink.finish()
    }
}
