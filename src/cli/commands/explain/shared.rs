//! What explanations of all kinds share: the question to the controller, and lines that fit.
use crate::cli::output::visible::one_line;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, output};
use crate::client::{ExplainReply, ExplainRequest};
use crate::model::UnixTime;
use crate::model::job::JobRow;

/// What the controller knows now; nothing if the cluster is stopped, or its controller is older.
pub(super) fn ask(records: &Records, request: &ExplainRequest, context: &Context) -> Result<Option<ExplainReply>, CommandError> {
    let Records::Running { client, .. } = records else {
        return Ok(None);
    };
    match context.block_on(client.explain(request))? {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.is_unsupported() => {
            context.note(format!(
                "note: the controller is pcluster {}, which cannot explain; `pcluster restart{}` replaces it",
                client.hello().version,
                context.options()
            ));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A text in lines that fit on the terminal; unbroken without one.
pub(super) struct Text {
    text: String,
    columns: Option<usize>,
}

impl Text {
    pub(super) fn new(context: &Context) -> Text {
        Text::with(context.terminal.stdout.then_some(usize::from(context.terminal.width)))
    }

    fn with(columns: Option<usize>) -> Text {
        Text {
            text: String::new(),
            columns,
        }
    }

    /// A prefix and a text, broken between words; further lines are indented.
    pub(super) fn line(&mut self, prefix: &str, indent: usize, text: &str) {
        let text = one_line(text);
        let columns = self.columns.unwrap_or(usize::MAX);
        let mut line = prefix.to_string();
        let mut is_fresh = true;
        for word in text.split(' ') {
            if !is_fresh && line.chars().count() + 1 + word.chars().count() > columns {
                self.text.push_str(&line);
                self.text.push('\n');
                line = " ".repeat(indent);
                is_fresh = true;
            }
            if !is_fresh {
                line.push(' ');
            }
            line.push_str(word);
            is_fresh = false;
        }
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// A line that is cut instead.
    pub(super) fn cut(&mut self, prefix: &str, text: &str) {
        let line = format!("{prefix}{}", one_line(text));
        let columns = self.columns.unwrap_or(usize::MAX);
        match line.char_indices().nth(columns) {
            Some(_) => {
                let kept: String = line.chars().take(columns.saturating_sub(1)).collect();
                self.text.push_str(&format!("{kept}…\n"));
            }
            None => self.text.push_str(&format!("{line}\n")),
        }
    }

    pub(super) fn print(&self) -> Result<(), CommandError> {
        output::print(&self.text)
    }
}

/// A time: relative on a terminal, else ISO 8601.
pub(super) fn when(time: UnixTime, now: UnixTime, context: &Context) -> String {
    match context.terminal.stdout {
        true => output::times::ago(now, time),
        false => time.to_iso(),
    }
}

/// The recorded state: `timed out (TIMEOUT)`.
pub(super) fn recorded(row: &JobRow) -> String {
    match row.reason.is_empty() {
        true => row.state.clone(),
        false => format!("{}: {}", row.state, row.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_on_a_terminal_only() {
        let text = |columns| {
            let mut text = Text::with(columns);
            text.line("task 1.3: ", 2, "waiting: 0 of 12 engines can take it now");
            text.cut("  stderr  ", "a line of output  that is not broken");
            text.text
        };
        assert_eq!(
            text(None),
            "task 1.3: waiting: 0 of 12 engines can take it now\n  stderr  a line of output  that is not broken\n"
        );
        assert_eq!(
            text(Some(24)),
            "task 1.3: waiting: 0 of\n  12 engines can take it\n  now\n  stderr  a line of out…\n"
        );
    }
}
