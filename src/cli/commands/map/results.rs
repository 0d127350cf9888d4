//! Results on their way out: written, or kept for a reduction.
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

/// What becomes of results.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Results")]
pub struct ResultOptions {
    /// How results are written
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write results to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write no results (they are kept: pcluster results)
    #[arg(long, conflicts_with_all = ["output", "format"])]
    pub no_output: bool,
    /// Fold the values, in input order, with a function of two values that is associative; print the one that is left
    #[arg(long, value_name = "FN", conflicts_with = "detach")]
    pub reduce: Option<String>,
    /// With --reduce: leave out the tasks that failed
    #[arg(long, requires = "reduce")]
    pub skip_failed: bool,
}

pub struct Results {
    pub sink: Sink,
    style: Style,
    /// stdout is a terminal: the bar must make way.
    terminal: bool,
    /// Values are kept for a reduction instead.
    pub fold: Option<Values>,
}

impl Results {
    /// Opens where they go, before anything is submitted.
    pub fn open(options: &ResultOptions, command: bool, json: bool, terminal: bool) -> Result<Results, CommandError> {
        if options.reduce.is_some() && options.format == Some(Format::Csv) {
            return Err(CommandError::usage("--reduce leaves one value, which makes no table").hint("--format jsonl or --format pickle"));
        }
        let style = Style::of(options.format, command, json && options.reduce.is_none());
        let sink = Sink::open(options.output.as_deref(), options.no_output)?;
        if matches!(style, Style::Pickle { .. }) && sink.is_stdout() && terminal {
            return Err(
                CommandError::usage("--format pickle writes bytes, and stdout is a terminal").hint("name a file: --output results.pickle")
            );
        }
        Ok(Results {
            sink,
            style,
            terminal,
            fold: options.reduce.is_some().then(Values::default),
        })
    }

    /// Whether a file waits to be complete.
    pub fn is_file(&self) -> bool {
        !self.sink.is_stdout() && !self.sink.is_nowhere()
    }

    /// Whether values are shown as JSON for people where they are more than it holds.
    pub fn shows_readable(&self) -> bool {
        !self.sink.is_nowhere() && !matches!(self.style, Style::Pickle { .. })
    }

    pub fn begin(&mut self) -> Result<(), CommandError> {
        match self.fold {
            Some(_) => Ok(()),
            None => self.sink.write(|out| self.style.begin(out)),
        }
    }

    pub fn take(&mut self, progress: &Progress, rows: Vec<TaskRow>) -> Result<(), CommandError> {
        if let Some(values) = &mut self.fold {
            rows.into_iter().for_each(|row| values.add(row));
            return Ok(());
        }
        if rows.is_empty() || self.sink.is_nowhere() {
            return Ok(());
        }
        let aside = self.style == Style::Output || (self.terminal && self.sink.is_stdout());
        let mut write = || {
            self.sink.write(|out| {
                let mut errors = std::io::stderr();
                rows.iter().try_for_each(|row| self.style.write(row, out, &mut errors))
            })
        };
        if aside { progress.aside(write) } else { write() }
    }

    /// What becomes of outputs that are too long to come with their rows.
    pub fn long_outputs(&self) -> LongOutputs {
        match self.style {
            _ if self.fold.is_some() || self.sink.is_nowhere() => LongOutputs::Left,
            Style::Output => LongOutputs::Streamed,
            Style::Values | Style::Csv { command: false } | Style::Pickle { command: false } => LongOutputs::Left,
            _ => LongOutputs::Fetched,
        }
    }

    /// Whether long values are written.
    pub fn wants_values(&self) -> bool {
        self.fold.is_none() && !self.sink.is_nowhere()
    }

    /// A piece of a command's output.
    pub fn take_piece(&mut self, progress: &Progress, stream: Stream, bytes: &[u8]) -> Result<(), CommandError> {
        progress.aside(|| match stream {
            Stream::Stdout => self.sink.write(|out| out.write_all(bytes)),
            Stream::Stderr | Stream::Value => {
                let _ = std::io::stderr().write_all(bytes);
                Ok(())
            }
        })
    }

    /// What the values were folded to.
    pub fn write_reduced(mut self, row: &TaskRow) -> Result<(), CommandError> {
        let style = self.style;
        self.sink.write(|out| match style {
            Style::Pickle { .. } => lone_pickle(row, out),
            _ => writeln!(out, "{}", value_line(row)),
        })?;
        self.sink.finish()
    }

    pub fn end(mut self) -> Result<(), CommandError> {
        self.sink.write(|out| self.style.end(out))?;
        self.sink.finish()
    }
}
