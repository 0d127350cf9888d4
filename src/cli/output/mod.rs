//! Output: data to stdout, status messages to stderr. Nothing panics when the reader closes the pipe.
pub(crate) mod json;
pub(crate) mod shown;
pub(crate) mod sink;
pub(crate) mod table;
pub(crate) mod times;
pub(crate) mod visible;

use super::error::CommandError;
use std::fmt::Display;
use std::io::{BufWriter, Write};

/// Columns of the terminal on stdout, else on stderr.
pub(crate) fn terminal_width() -> Option<u16> {
    // A table supports only one stream.
    let on_stdout = comfy_table::Table::new().width();
    on_stdout
        .or_else(|| comfy_table::Table::new().use_stderr().width())
        .filter(|w| *w > 0)
}

/// Writes one line to stderr, ignoring errors.
pub(crate) fn stderr_line(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn stderr_text(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes data to stdout, buffered, and returns errors.
pub(crate) fn stdout(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<(), CommandError> {
    let mut out = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).map_err(CommandError::output)
}

/// Writes text to stdout, unchanged.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    stdout(|out| out.write_all(text.as_bytes()))
}

/// `1 task`, `3 tasks`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Splits text into lines of whole words, at most `columns` wide unless a word is longer.
pub(crate) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}
