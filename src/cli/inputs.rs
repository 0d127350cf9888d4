//! The inputs of a map: where they come from, and their conversion to one JSON text per task.
//!
//! For a function an input is a JSON list (positional arguments) or object (keyword arguments); for a command a list of
//! strings. Parts: [`function`] (what to run), [`code`] (the files sent with it), [`range`] (`A..B`), `paths` (`--glob`), [`rows`] (lines,
//! JSON lines), `csv`, `recount` (checks that a file is unchanged between counting and sending); this file chooses between them.
pub(crate) mod code;
pub mod csv;
pub(crate) mod function;
mod paths;
pub(crate) mod range;
mod recount;
pub mod rows;

use super::CommandError;
use range::Range;
use recount::Fingerprint;
pub use rows::Shape;
use rows::{InputError, Row};
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read};
use std::path::PathBuf;

/// Options that define the inputs.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Inputs")]
pub(crate) struct InputArgs {
    /// Read INPUTS as one JSON value per line: a list is positional, an object keyword arguments, any other value one argument
    #[arg(long, group = "input_form")]
    pub jsonl: bool,
    /// Read INPUTS as CSV: the columns of each record are the arguments, as strings
    #[arg(long, group = "input_form")]
    pub csv: bool,
    /// Use the first CSV record as names of keyword arguments (for a command, skip it)
    #[arg(long, requires = "csv")]
    pub header: bool,
    /// Use the integers from A up to, but not including, B; A..=B includes B; A..B..S uses steps of S
    #[arg(long, value_name = "A..B", group = "input_form", allow_hyphen_values = true)]
    pub range: Option<Range>,
    /// Use the matching files and directories, sorted
    #[arg(long, value_name = "PATTERN", group = "input_form")]
    pub glob: Option<String>,
}

/// Inputs, checked if they can be read twice.
#[derive(Debug)]
pub(crate) struct Inputs {
    source: Source,
    shape: Shape,
    /// The number of inputs; unknown for a stream.
    pub count: Option<u64>,
    /// The fingerprint of a file that was counted.
    fingerprint: Option<u64>,
    /// Of a file that was counted, where it is long: which input is the longest (counted from 1), and its bytes.
    longest: Option<(u64, usize)>,
}

/// An input of this size, with six bytes per character, is below any limit of messages.
const SURELY_FITS: usize = 128 << 10;

#[derive(Clone, Debug)]
enum Source {
    Range(Range),
    Paths(Vec<String>),
    Text { from: TextSource, form: Form },
}

#[derive(Clone, Debug)]
enum TextSource {
    Stdin,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lines,
    JsonLines,
    Csv { header: bool },
}

/// The maximum number of inputs of a map.
const MAX_INPUTS: u64 = u32::MAX as u64;

type Rows = Box<dyn Iterator<Item = Result<Row, InputError>> + Send>;
pub(crate) type Texts = Box<dyn Iterator<Item = Result<String, InputError>> + Send>;

impl Inputs {
    /// Finds the inputs. Reads a regular file once completely, so that invalid lines are reported before anything is submitted.
    pub(crate) fn find(args: &InputArgs, file: Option<&str>, shape: Shape) -> Result<Inputs, CommandError> {
        let source = match (&args.range, &args.glob, file) {
            (Some(_), _, Some(file)) | (_, Some(_), Some(file)) => {
                return Err(
                    CommandError::usage(format!("inputs given twice: as the file {file} and with --range or --glob"))
                        .hint("remove one of them"),
                );
            }
            (Some(range), _, None) => Source::Range(range.clone()),
            (_, Some(pattern), None) => Source::Paths(paths::matching(pattern)?),
            (None, None, None) => {
                return Err(CommandError::usage("no inputs given")
                    .hint("pass a file with one input per line or `-` for stdin, or use --range 0..100 or --glob 'data/*.csv'"));
            }
            (None, None, Some(file)) => Source::Text {
                from: if file == "-" {
                    TextSource::Stdin
                } else {
                    TextSource::File(file.into())
                },
                form: match (args.jsonl, args.csv) {
                    (true, _) => Form::JsonLines,
                    (_, true) => Form::Csv { header: args.header },
                    _ => Form::Lines,
                },
            },
        };
        let mut inputs = Inputs {
            source,
            shape,
            count: None,
            fingerprint: None,
            longest: None,
        };
        inputs.check()?;
        if let Some(count) = inputs.count {
            if count == 0 {
                return Err(inputs.none());
            }
            if count > MAX_INPUTS {
                return Err(
                    CommandError::usage(format!("{count} inputs exceed the maximum of one map ({MAX_INPUTS})"))
                        .hint("split them into several maps"),
                );
            }
        }
        Ok(inputs)
    }

    /// The error for an empty stream or file.
    pub(crate) fn none(&self) -> CommandError {
        let from = match &self.source {
            Source::Range(range) => return CommandError::usage(format!("--range {range} is empty")),
            Source::Paths(_) => return CommandError::usage("--glob matches nothing"),
            Source::Text { from, .. } => from,
        };
        let what = match from {
            TextSource::Stdin => "stdin has no inputs".to_string(),
            TextSource::File(path) => format!("{} has no inputs: it is empty or has only empty lines", path.display()),
        };
        CommandError::usage(what).hint("nothing was submitted")
    }

    /// Of inputs that were counted, whether the controller can receive each.
    pub(crate) fn must_fit(&self, max: u64) -> Result<(), CommandError> {
        match self.longest {
            Some((number, bytes)) if bytes as u64 > max => Err(CommandError::usage(format!(
                "input {number} of {} has {bytes} bytes; the controller accepts at most {max} bytes (controller.max_message_mb)",
                self.from()
            ))
            .hint(
                "nothing was submitted; pass large data as files and only their names as inputs, or start the cluster with a larger limit",
            )),
            _ => Ok(()),
        }
    }

    /// Whether inputs may still arrive while the first tasks run.
    pub(crate) fn is_stream(&self) -> bool {
        self.count.is_none()
    }

    /// Whether the inputs are typed at a terminal.
    pub(crate) fn is_typed(&self) -> bool {
        matches!(
            self.source,
            Source::Text {
                from: TextSource::Stdin,
                ..
            }
        ) && std::io::stdin().is_terminal()
    }

    /// Each input as JSON text on one line. Blocks while a stream has no data. Yields an error if a counted file has changed.
    pub(crate) fn texts(&self) -> Result<Texts, CommandError> {
        let shape = self.shape;
        let (rows, bytes) = self.rows()?;
        let texts = rows.map(move |row| row.map(|row| row.to_json(shape)));
        Ok(match (self.count, self.fingerprint) {
            (Some(count), Some(fingerprint)) => Box::new(recount::same(texts, self.from(), count, move || bytes.get() == fingerprint)),
            _ => Box::new(texts),
        })
    }

    fn from(&self) -> String {
        match &self.source {
            Source::Text {
                from: TextSource::File(path),
                ..
            } => path.display().to_string(),
            _ => "stdin".into(),
        }
    }

    /// The inputs, and a fingerprint of the bytes read so far.
    fn rows(&self) -> Result<(Rows, Fingerprint), CommandError> {
        let fingerprint = Fingerprint::default();
        let (from, form) = match &self.source {
            Source::Range(range) => {
                let numbers = range.clone().into_iter().map(|n| Ok(Row::Integer(n)));
                return Ok((Box::new(numbers), fingerprint));
            }
            Source::Paths(paths) => {
                let paths = paths.clone().into_iter().map(|p| Ok(Row::Line(p)));
                return Ok((Box::new(paths), fingerprint));
            }
            Source::Text { from, form } => (from, *form),
        };
        let reader: Box<dyn Read + Send> = match from {
            TextSource::Stdin => Box::new(std::io::stdin()),
            TextSource::File(path) => Box::new(File::open(path).map_err(|e| cannot_read(path, &e))?),
        };
        let reader = BufReader::with_capacity(256 * 1024, fingerprint.of(reader));
        let name = self.from();
        let rows: Rows = match form {
            Form::Lines => Box::new(rows::lines(name, reader).map(|line| line.map(|(_, text)| Row::Line(text)))),
            Form::JsonLines => Box::new(rows::json_lines(name, reader, self.shape)),
            Form::Csv { header } => Box::new(csv::records(name, reader, header)),
        };
        Ok((rows, fingerprint))
    }

    /// Counts the inputs of sources that can be read twice.
    fn check(&mut self) -> Result<(), CommandError> {
        match &self.source {
            Source::Range(range) => {
                self.count = Some(range.len());
                return Ok(());
            }
            Source::Paths(paths) => {
                self.count = Some(paths.len() as u64);
                return Ok(());
            }
            Source::Text {
                from: TextSource::Stdin, ..
            } => return Ok(()),
            Source::Text {
                from: TextSource::File(path),
                ..
            } => {
                let facts = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
                if facts.is_dir() {
                    return Err(
                        CommandError::usage(format!("{} is a directory, not a file with inputs", path.display()))
                            .hint(format!("use the files in it as inputs: --glob '{}/*'", path.display())),
                    );
                }
                if !facts.is_file() {
                    return Ok(());
                }
            }
        }
        let (rows, fingerprint) = self.rows()?;
        let mut count = 0;
        let shape = self.shape;
        for row in rows {
            let row = row.map_err(|e| CommandError::from(e).hint("nothing was submitted"))?;
            count += 1;
            if row.bytes() > SURELY_FITS {
                let bytes = row.json_bytes(shape);
                self.longest = self.longest.filter(|longest| longest.1 >= bytes).or(Some((count, bytes)));
            }
        }
        self.count = Some(count);
        self.fingerprint = Some(fingerprint.get());
        Ok(())
    }
}

fn cannot_read(path: &std::path::Path, error: &std::io::Error) -> CommandError {
    let here = std::env::current_dir()
        .map(|d| d.display().to_string())
        .unwrap_or_else(|_| "?".into());
    match error.kind() {
        std::io::ErrorKind::NotFound if path.is_absolute() => CommandError::usage(format!("no inputs file {}", path.display())),
        std::io::ErrorKind::NotFound => CommandError::usage(format!("no inputs file {} (in {here})", path.display())),
        _ => CommandError::environment(format!("cannot read the inputs file {}: {error}", path.display())),
    }
}

impl From<InputError> for CommandError {
    fn from(error: InputError) -> CommandError {
        CommandError::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests;
