//! `pcluster explain`: why a task, map, engine or batch job is in its state.
mod attempts;
mod engine;
mod job;
mod map;
mod task;

use crate::cli::output::visible::one_line;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit, output};
use crate::client::{ExplainReply, ExplainRequest};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use std::str::FromStr;

/// Explain why a task, map, engine or job is in its state
///
/// For a task that waits: which engines cannot take it and why, when the next one is expected to be free, and what jobs wait in the
/// batch system. For one that has ended: its attempts, each with the cause, the engine, and the last lines of its output. Also
/// works on a stopped cluster, from the profile's database file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster explain 1.3\n  pcluster explain --engine 4\n  pcluster explain --job 4711 --json",
    group = clap::ArgGroup::new("subject").required(true)
)]
pub(crate) struct Args {
    /// Explain this map (`1`) or task (`1.3`)
    #[arg(group = "subject")]
    id: Option<Subject>,
    /// Explain this engine
    #[arg(long, value_name = "N", group = "subject", value_parser = engine_id)]
    engine: Option<EngineId>,
    /// Explain this job of the batch system (`4711`), or one element of it (`4711.3`)
    #[arg(long, value_name = "ID", group = "subject")]
    job: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Subject {
    Map(MapId),
    Task(TaskId),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Subject, String> {
        let task = text.parse().map(Subject::Task);
        task.or_else(|_| text.parse().map(Subject::Map))
            .map_err(|_| format!("{text:?} is neither a map (12) nor a task (12.3)"))
    }
}

fn engine_id(text: &str) -> Result<EngineId, String> {
    let id = text.parse().map(EngineId);
    id.map_err(|_| format!("{text:?} is not the number of an engine"))
}

impl Args {
    pub(crate) fn is_about_job(&self) -> bool {
        self.job.is_some()
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    match (args.id, args.engine, args.job) {
        (Some(Subject::Task(task)), ..) => task::explain(task, context),
        (Some(Subject::Map(map)), ..) => map::explain(map, context),
        (_, Some(engine), _) => engine::explain(engine, context),
        (.., Some(job)) => job::explain(&job, context),
        _ => Err(CommandError::usage("name a map, a task, an engine or a job")),
    }?;
    Ok(Exit::Fine)
}

/// What the controller knows now; nothing if the cluster is stopped, or its controller is older.
fn ask(records: &Records, request: &ExplainRequest, context: &Context) -> Result<Option<ExplainReply>, CommandError> {
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
struct Text {
    text: String,
    columns: Option<usize>,
}

impl Text {
    fn new(context: &Context) -> Text {
        Text::with(context.terminal.stdout.then_some(usize::from(context.terminal.width)))
    }

    fn with(columns: Option<usize>) -> Text {
        Text {
            text: String::new(),
            columns,
        }
    }

    /// A prefix and a text, broken between words; further lines are indented.
    fn line(&mut self, prefix: &str, indent: usize, text: &str) {
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
    fn cut(&mut self, prefix: &str, text: &str) {
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

    fn print(&self) -> Result<(), CommandError> {
        output::print(&self.text)
    }
}

/// A time: relative on a terminal, else ISO 8601.
fn when(time: UnixTime, now: UnixTime, context: &Context) -> String {
    match context.terminal.stdout {
        true => output::times::ago(now, time),
        false => time.to_iso(),
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
