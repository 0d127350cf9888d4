//! CSV records as inputs. Tracks quotes, because an unclosed quote would turn the rest of the file into one record.
use super::rows::{InputError, NUL, Row};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The records of CSV text; with `header`, the first names the columns.
pub fn records(source: String, reader: impl Read, header: bool) -> impl Iterator<Item = Result<Row, InputError>> {
    let open = OpenQuote::default();
    let reader = open.watch(reader);
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(!header).from_reader(reader);
    let mut names: Option<Vec<String>> = None;
    let mut failed = false;
    std::iter::from_fn(move || {
        loop {
            if failed {
                return None;
            }
            let mut record = ::csv::StringRecord::new();
            match reader.read_record(&mut record) {
                Ok(false) => return None,
                Ok(true) => {}
                Err(error) => {
                    failed = true;
                    return Some(Err(csv_error(&source, &error)));
                }
            }
            if let Some(why) = wrong_with(&record, &open) {
                failed = true;
                let (source, (line, why)) = (source.clone(), why);
                return Some(Err(InputError {
                    source,
                    line,
                    column: None,
                    why,
                }));
            }
            let columns: Vec<String> = record.iter().map(str::to_string).collect();
            match &names {
                _ if !header => return Some(Ok(Row::Columns(columns))),
                Some(names) => return Some(Ok(Row::Named(names.iter().cloned().zip(columns).collect()))),
                None => {
                    let mut columns = columns;
                    if let Some(first) = columns.first_mut()
                        && let Some(rest) = first.strip_prefix('\u{feff}')
                    {
                        *first = rest.to_string();
                    }
                    if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
                        failed = true;
                        return Some(Err(InputError {
                            source: source.clone(),
                            line: Some(1),
                            column: None,
                            why: format!("the header names the column {:?} twice", twice.1),
                        }));
                    }
                    names = Some(columns);
                }
            }
        }
    })
}

/// The line of an error in a record that the parser accepted, and what is wrong.
fn wrong_with(record: &::csv::StringRecord, open: &OpenQuote) -> Option<(Option<u64>, String)> {
    if let Some(line) = open.at_end() {
        return Some((Some(line), "unclosed quote".into()));
    }
    let has_nul = record.iter().any(|column| column.contains('\0'));
    has_nul.then(|| (record.position().map(::csv::Position::line), NUL.into()))
}

/// The line of the quote that was open at the end of the text; 0 if none, or not known yet.
#[derive(Clone, Default)]
struct OpenQuote(Arc<AtomicU64>);

impl OpenQuote {
    fn watch<R: Read>(&self, inner: R) -> Watched<R> {
        Watched {
            inner,
            open: self.clone(),
            position: Position::FieldStart,
            line: 1,
            opened: 0,
            before: 0,
        }
    }

    fn at_end(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|line| *line > 0)
    }
}

/// A reader that tracks quotes like the parser.
struct Watched<R> {
    inner: R,
    open: OpenQuote,
    position: Position,
    line: u64,
    /// The line of the last opening quote.
    opened: u64,
    before: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    FieldStart,
    Field,
    Quoted,
    /// After a quote in a quoted field: its end, or half of a doubled one.
    Quote,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.position == Position::Quoted {
            self.open.0.store(self.opened, Ordering::Relaxed);
        }
        for byte in buffer.iter().take(count) {
            self.follow(*byte);
        }
        Ok(count)
    }
}

impl<R> Watched<R> {
    fn follow(&mut self, byte: u8) {
        if byte == b'\n' && self.before != b'\r' || byte == b'\r' {
            self.line += 1;
        }
        self.before = byte;
        self.position = match (self.position, byte) {
            (Position::Quoted, b'"') => Position::Quote,
            (Position::Quoted, _) => Position::Quoted,
            (Position::Quote, b'"') => Position::Quoted,
            (_, b',' | b'\n' | b'\r') => Position::FieldStart,
            (Position::FieldStart, b'"') => {
                self.opened = self.line;
                Position::Quoted
            }
            // A byte order mark.
            (Position::FieldStart, 0xef | 0xbb | 0xbf) if self.line == 1 => Position::FieldStart,
            _ => Position::Field,
        };
    }
}

fn csv_error(source: &str, error: &::csv::Error) -> InputError {
    let line = error.position().map(|p| p.line());
    let why = match error.kind() {
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("{len} columns, but the header has {expected_len}"),
        ::csv::ErrorKind::Utf8 { err, .. } => format!("column {} is not UTF-8 text", err.field() + 1),
        ::csv::ErrorKind::Io(error) => format!("read error: {error}"),
        _ => format!("not CSV: {error}"),
    };
    InputError {
        source: source.into(),
        line,
        column: None,
        why,
    }
}
