//! Where a map's inputs come from, and what each becomes: one JSON text a task.
//!
//! For a function an input is a JSON list (positional arguments) or object (keyword arguments); for a command a list of
//! strings. Parts: [`function`] (what to run), [`code`] (the files that travel with it), [`range`] (`A..B`), `paths` (`--glob`), [`rows`] (lines,
//! JSON lines), `csv`, `recount` (what was counted is what is sent), here the choice between them.
pub mod code;
pub mod csv;
pub mod function;
mod paths;
pub mod range;
mod recount;
pub mod rows;

use super::CommandError;
use range::Range;
use recount::Fingerprint;
use rows::{InputError, Row};
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read};
use std::path::PathBuf;

/// How inputs are given.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Inputs")]
pub struct InputArgs {
    /// INPUTS has one JSON value a line: a list is positional arguments, an object keyword arguments, anything else the one argument
    #[arg(long, group = "input_form")]
    pub jsonl: bool,
    /// INPUTS is CSV: each record's columns are the arguments, as strings
    #[arg(long, group = "input_form")]
    pub csv: bool,
    /// The first CSV record names the columns: they become keyword arguments (for a command it is only passed over)
    #[arg(long, requires = "csv")]
    pub header: bool,
    /// The integers from A to B without B; A..=B with B; A..B..S in steps of S
    #[arg(long, value_name = "A..B", group = "input_form", allow_hyphen_values = true)]
    pub range: Option<Range>,
    /// The files and directories that match, sorted
    #[arg(long, value_name = "PATTERN", group = "input_form")]
    pub glob: Option<String>,
}

/// What the inputs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Arguments of a Python function.
    Call,
    /// Words of a command.
    Command,
}

/// Inputs that were found and, where they can be read twice, checked.
#[derive(Debug)]
pub struct Inputs {
    source: Source,
    shape: Shape,
    /// How many there are; not known of a stream.
    pub count: Option<u64>,
    /// Of a file that was counted: its bytes.
    fingerprint: Option<u64>,
    /// Of a file that was counted, where it is long: which input is the longest (counted from 1), and its bytes.
    longest: Option<(u64, usize)>,
}

/// No limit for messages is so low that it forbids an input of so many bytes, each written as six.
const SURELY_FITS: usize = 128 << 10;

#[derive(Clone, Debug)]
enum Source {
    Range(Range),
    Paths(Vec<String>),
    Text { place: Place, form: Form },
}

#[derive(Clone, Debug)]
enum Place {
    Stdin,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lines,
    JsonLines,
    Csv { header: bool },
}

/// More inputs than a map can number.
const MOST: u64 = u32::MAX as u64;

type Rows = Box<dyn Iterator<Item = Result<Row, InputError>> + Send>;
pub type Texts = Box<dyn Iterator<Item = Result<String, InputError>> + Send>;

impl Inputs {
    /// Finds the inputs. A regular file is read once to its end here, so that bad lines are told of before anything is submitted.
    pub fn find(args: &InputArgs, file: Option<&str>, shape: Shape) -> Result<Inputs, CommandError> {
        let source = match (&args.range, &args.glob, file) {
            (Some(_), _, Some(file)) | (_, Some(_), Some(file)) => {
                return Err(
                    CommandError::usage(format!("inputs are given twice: as the file {file} and with --range or --glob"))
                        .hint("leave one of them out"),
                );
            }
            (Some(range), _, None) => Source::Range(range.clone()),
            (_, Some(pattern), None) => Source::Paths(paths::matching(pattern)?),
            (None, None, None) => {
                return Err(CommandError::usage("no inputs are given")
                    .hint("name a file with one input a line, or `-` for stdin; or use --range 0..100 or --glob 'data/*.csv'"));
            }
            (None, None, Some(file)) => Source::Text {
                place: if file == "-" { Place::Stdin } else { Place::File(file.into()) },
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
            if count > MOST {
                return Err(CommandError::usage(format!("{count} inputs are more than one map can have ({MOST})")).hint("split them"));
            }
        }
        Ok(inputs)
    }

    /// The error for a stream or file that held no input.
    pub fn none(&self) -> CommandError {
        let place = match &self.source {
            Source::Range(range) => return CommandError::usage(format!("--range {range} has no numbers in it")),
            Source::Paths(_) => return CommandError::usage("--glob matches nothing"),
            Source::Text { place, .. } => place,
        };
        let what = match place {
            Place::Stdin => "stdin gave no inputs".to_string(),
            Place::File(path) => format!("{} has no inputs: it is empty, or all its lines are", path.display()),
        };
        CommandError::usage(what).hint("nothing was submitted")
    }

    /// Of inputs that were counted, whether the controller can receive each.
    pub fn must_fit(&self, max: u64) -> Result<(), CommandError> {
        match self.longest {
            Some((number, bytes)) if bytes as u64 > max => Err(CommandError::usage(format!(
                "input {number} of {} has {bytes} bytes; the controller receives messages of up to {max} bytes (controller.most_message_mb)",
                self.place()
            ))
            .hint("nothing was submitted; pass large data as files and only their names as inputs, or start the cluster with a larger limit")),
            _ => Ok(()),
        }
    }

    /// Whether more inputs may still be coming while the first are at work.
    pub fn is_stream(&self) -> bool {
        self.count.is_none()
    }

    /// Whether somebody is to type them.
    pub fn is_typed(&self) -> bool {
        matches!(self.source, Source::Text { place: Place::Stdin, .. }) && std::io::stdin().is_terminal()
    }

    /// Each input as JSON text on one line. Blocks while a stream gives nothing. Of a file that was counted, an error where it is
    /// another by now.
    pub fn texts(&self) -> Result<Texts, CommandError> {
        let shape = self.shape;
        let (rows, bytes) = self.rows()?;
        let texts = rows.map(move |row| row.map(|row| row.to_json(shape)));
        Ok(match (self.count, self.fingerprint) {
            (Some(count), Some(fingerprint)) => Box::new(recount::same(texts, self.place(), count, move || bytes.get() == fingerprint)),
            _ => Box::new(texts),
        })
    }

    fn place(&self) -> String {
        match &self.source {
            Source::Text {
                place: Place::File(path), ..
            } => path.display().to_string(),
            _ => "stdin".into(),
        }
    }

    /// The inputs, and a fingerprint of the bytes read so far.
    fn rows(&self) -> Result<(Rows, Fingerprint), CommandError> {
        let fingerprint = Fingerprint::default();
        let (place, form) = match &self.source {
            Source::Range(range) => {
                let numbers = range.clone().into_iter().map(|n| Ok(Row::Integer(n)));
                return Ok((Box::new(numbers), fingerprint));
            }
            Source::Paths(paths) => {
                let paths = paths.clone().into_iter().map(|p| Ok(Row::Line(p)));
                return Ok((Box::new(paths), fingerprint));
            }
            Source::Text { place, form } => (place, *form),
        };
        let reader: Box<dyn Read + Send> = match place {
            Place::Stdin => Box::new(std::io::stdin()),
            Place::File(path) => Box::new(File::open(path).map_err(|e| cannot_read(path, &e))?),
        };
        let reader = BufReader::with_capacity(256 * 1024, fingerprint.of(reader));
        let name = self.place();
        let rows: Rows = match form {
            Form::Lines => Box::new(rows::lines(name, reader).map(|line| line.map(|(_, text)| Row::Line(text)))),
            Form::JsonLines => Box::new(rows::json_lines(name, reader, self.shape)),
            Form::Csv { header } => Box::new(csv::records(name, reader, header)),
        };
        Ok((rows, fingerprint))
    }

    /// Counts what can be read twice.
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
            Source::Text { place: Place::Stdin, .. } => return Ok(()),
            Source::Text {
                place: Place::File(path), ..
            } => {
                let facts = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
                if facts.is_dir() {
                    return Err(
                        CommandError::usage(format!("{} is a directory, not a file with inputs", path.display()))
                            .hint(format!("the files in it as inputs: --glob '{}/*'", path.display())),
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
                let bytes = row.to_json(shape).len();
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
        std::io::ErrorKind::NotFound if path.is_absolute() => {
            CommandError::usage(format!("there is no file {} to read inputs from", path.display()))
        }
        std::io::ErrorKind::NotFound => CommandError::usage(format!(
            "there is no file {} to read inputs from (looked in {here})",
            path.display()
        )),
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
