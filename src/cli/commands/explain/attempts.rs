//! The attempts of a task: how each ended, where, and the last lines of its output.
use super::shared::{Text, when};
use crate::cli::output::{counted, shown, times};
use crate::cli::records::Records;
use crate::cli::views::error_line;
use crate::cli::{CommandError, Context};
use crate::model::engine::EngineRow;
use crate::model::memory::Memory;
use crate::model::output::{Output, Stream};
use crate::model::task::{Ask, AttemptRow, Cause, TaskRow, TaskState};
use crate::model::{EngineId, TaskId, UnixTime};
use serde::Serialize;

/// The maximum number of lines of output shown of an attempt, of bytes of these, and of attempts.
const MAX_LINES: usize = 5;
const MAX_BYTES: u64 = 4096;
const MAX_ATTEMPTS: usize = 10;

/// One attempt, as `--json` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Attempt {
    run: u32,
    state: TaskState,
    /// Why it failed, in one word, and its error: `ValueError: no digits`.
    cause: Option<Cause>,
    error: Option<String>,
    exit_code: Option<i32>,
    engine: Option<EngineId>,
    host: Option<String>,
    /// The batch job of the engine.
    job: Option<String>,
    started: Option<String>,
    completed: Option<String>,
    duration: Option<f64>,
    /// In bytes, as far as measured.
    peak_memory: Option<u64>,
    /// What it asked for in place of its map's request.
    ask: Option<Ask>,
    last_output: Option<LastOutput>,
    #[serde(skip)]
    ended: Option<UnixTime>,
}

/// The last lines of what an attempt has written: to stderr, else to stdout.
#[derive(Debug, Serialize)]
struct LastOutput {
    stream: Stream,
    text: String,
    /// The size of the whole stream.
    size: u64,
}

/// All attempts, oldest first; the current one if it has ended, or has written something.
pub(super) fn all(row: &TaskRow, earlier: &[AttemptRow], engines: &[EngineRow], records: &Records) -> Result<Vec<Attempt>, CommandError> {
    let skipped = earlier.len().saturating_sub(MAX_ATTEMPTS);
    let mut attempts = Vec::new();
    for attempt in &earlier[skipped..] {
        let outcome = &attempt.outcome;
        let outputs = [(Stream::Stderr, &outcome.stderr), (Stream::Stdout, &outcome.stdout)];
        attempts.push(Attempt {
            run: attempt.run,
            state: outcome.status,
            cause: outcome.cause(),
            error: outcome.error.as_ref().map(error_line),
            exit_code: outcome.exit_code,
            engine: attempt.engine,
            host: attempt.host.clone(),
            job: job_of(attempt.engine, engines),
            started: Some(outcome.started.to_iso()),
            completed: Some(outcome.ended.to_iso()),
            duration: Some(outcome.ended.since(outcome.started)),
            peak_memory: outcome.peak_memory,
            ask: attempt.ask,
            last_output: last_output(row.task, attempt.run, outputs, records)?,
            ended: Some(outcome.ended),
        });
    }
    let has_written = !(row.stdout.is_empty() && row.stderr.is_empty());
    let has_ended = row.state.is_done() && row.engine.is_some() && row.started.is_some();
    if has_ended || row.state == TaskState::Running && has_written {
        let outputs = [(Stream::Stderr, &row.stderr), (Stream::Stdout, &row.stdout)];
        attempts.push(Attempt {
            run: row.run,
            state: row.state,
            cause: row.cause.clone(),
            error: row.error.as_ref().map(error_line),
            exit_code: row.exit_code,
            engine: row.engine,
            host: row.host.clone(),
            job: job_of(row.engine, engines),
            started: row.started.map(UnixTime::to_iso),
            completed: row.completed.map(UnixTime::to_iso),
            duration: row.duration,
            peak_memory: row.peak_memory,
            ask: row.ask,
            last_output: last_output(row.task, row.run, outputs, records)?,
            ended: row.completed,
        });
    }
    Ok(attempts)
}

fn job_of(engine: Option<EngineId>, engines: &[EngineRow]) -> Option<String> {
    // The latest with this number.
    let row = engines.iter().rev().find(|row| Some(row.id) == engine)?;
    Some(row.facts.job.clone()).filter(|job| !job.is_empty())
}

fn last_output(task: TaskId, run: u32, outputs: [(Stream, &Output); 2], records: &Records) -> Result<Option<LastOutput>, CommandError> {
    let Some((stream, output)) = outputs.into_iter().find(|(_, output)| !output.is_empty()) else {
        return Ok(None);
    };
    let bytes = match output.is_whole() {
        true => output.bytes.clone(),
        false => records.output(task, Some(run), stream, output.size.saturating_sub(MAX_BYTES))?.1,
    };
    let text = last_lines(&shown::escaped(&bytes));
    let size = output.size;
    Ok((!text.is_empty()).then_some(LastOutput { stream, text, size }))
}

/// The last lines that are not blank.
fn last_lines(text: &str) -> String {
    let mut from = text.len().saturating_sub(MAX_BYTES as usize);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let lines: Vec<&str> = text[from..].lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(MAX_LINES)..].join("\n")
}

/// Writes the attempts, unless there is nothing to say about them.
pub(super) fn write(text: &mut Text, attempts: &[Attempt], earlier: usize, now: UnixTime, context: &Context) {
    let hidden = earlier.saturating_sub(MAX_ATTEMPTS) as u64;
    if hidden > 0 {
        text.line("  ", 4, &format!("… {} before", counted(hidden, "attempt")));
    }
    for (number, attempt) in (hidden + 1..).zip(attempts) {
        let mut line = attempt.state.to_string();
        if let Some(words) = attempt.cause.as_ref().and_then(words) {
            line.push_str(&format!(" ({words})"));
        }
        if let Some(seconds) = attempt.duration {
            line.push_str(&format!(" after {}", times::duration(seconds)));
        }
        if let Some(engine) = attempt.engine {
            let host = attempt.host.as_deref().unwrap_or_default();
            let job = attempt.job.as_deref().map(|job| format!("job {job}"));
            let place: Vec<String> = Some(host.to_string())
                .filter(|host| !host.is_empty())
                .into_iter()
                .chain(job)
                .collect();
            line.push_str(&format!(" on engine {engine}"));
            if !place.is_empty() {
                line.push_str(&format!(" ({})", place.join(", ")));
            }
        }
        if let Some(ended) = attempt.ended {
            line.push_str(&format!(", {}", when(ended, now, context)));
        }
        let size = |bytes| Memory { bytes }.rounded();
        let asked = attempt.ask.map(|ask| [ask.mem_bytes.map(size), ask.limit_s().map(times::duration)]);
        let asked: Vec<String> = asked.into_iter().flatten().flatten().collect();
        if !asked.is_empty() {
            line.push_str(&format!("; it asked for {}", asked.join(", ")));
        }
        if let Some(bytes) = attempt.peak_memory {
            line.push_str(&format!("; peak memory {}", size(bytes)));
        }
        text.line(&format!("  attempt {number}: "), 4, &line);
        let exit_code = attempt.exit_code.filter(|code| *code != 0).map(|code| format!("exit code {code}"));
        if let Some(error) = attempt.error.clone().or(exit_code) {
            text.line("    ", 6, &error);
        }
        if let Some(output) = &attempt.last_output {
            let lines = output.text.lines().enumerate();
            lines.for_each(|(at, line)| match at {
                0 => text.cut(&format!("    {}: ", output.stream.as_str()), line),
                _ => text.cut("            ", line),
            });
        }
    }
}

/// What the state does not say.
fn words(cause: &Cause) -> Option<&str> {
    Some(match cause {
        Cause::Error | Cause::Timeout | Cause::Cancelled => return None,
        Cause::Crash => "crash",
        Cause::MemoryLimit => "out of memory: its own limit",
        Cause::MemoryCgroup => "out of memory: its control group",
        Cause::MemoryJob => "out of memory: the job of its engine",
        Cause::EngineLost => "its engine was lost",
        Cause::Unknown(word) => word,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_with_text() {
        assert_eq!(last_lines("1\n2\n3\n4\n\n5\n6  \n\n"), "2\n3\n4\n5\n6");
        assert_eq!(last_lines(""), "");
        let long = "é".repeat(MAX_BYTES as usize);
        assert!(last_lines(&long).len() <= MAX_BYTES as usize);
    }
}
