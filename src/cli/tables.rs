//! Tables of maps and tasks, and the details of one task. Pure: rows in, text out.
use super::context::Terminal;
use super::output::table::{Cell, Table, Tone};
use super::output::times;
use super::output::visible::{one_line, visible};
use super::records::Details;
use super::views::{error_line, map_state};
use crate::cli::output::shown;
use crate::model::definition::{MapOptions, Work};
use crate::model::engine::EngineStatus;
use crate::model::memory::Memory;
use crate::model::output::{Output, Stream};
use crate::model::task::{Ask, MapRow, TaskRow, TaskState};
use crate::model::{EngineId, TaskId, UnixTime};

pub(crate) fn tone(state: TaskState) -> Tone {
    match state {
        TaskState::Ok => Tone::Good,
        state if state.is_failed() => Tone::Bad,
        TaskState::Running | TaskState::Assigned => Tone::Active,
        _ => Tone::Faint,
    }
}

/// A time: relative on a terminal, else ISO 8601.
fn when(time: UnixTime, now: UnixTime, terminal: &Terminal) -> String {
    if terminal.stdout { times::ago(now, time) } else { time.to_iso() }
}

pub(crate) fn maps(rows: &[MapRow], now: UnixTime, terminal: &Terminal) -> String {
    let labels = rows.iter().any(|row| row.label.is_some());
    // On a narrow terminal, names need the space.
    let roomy = !terminal.stdout || terminal.width >= 70;
    let mut table = Table::new().number("MAP").column("STATE").number("DONE").number("FAILED");
    if roomy {
        table = table.number("RUNNING").column("SUBMITTED");
    }
    table = table.column("TIME").text("NAME");
    if labels {
        table = table.text("LABEL");
    }
    for row in rows {
        let state = map_state(row);
        let counts = &row.counts;
        let tone = match state {
            "ok" => Tone::Good,
            "failed" => Tone::Bad,
            "running" => Tone::Active,
            _ => Tone::Faint,
        };
        let failed = Cell::new(counts.failed()).tone(if counts.failed() > 0 { Tone::Bad } else { Tone::Plain });
        let open = if row.closed { "" } else { "+" };
        let mut cells = vec![
            Cell::new(row.map),
            Cell::new(state).tone(tone),
            Cell::new(format!("{}/{}{open}", counts.done(), counts.total)),
            failed,
        ];
        if roomy {
            cells.push(Cell::new(counts.running + counts.assigned));
            cells.push(Cell::new(when(row.submitted, now, terminal)));
        }
        cells.push(Cell::new(times::duration(row.completed.unwrap_or(now).since(row.submitted))));
        cells.push(Cell::new(&row.name));
        if labels {
            cells.push(Cell::or_dash(row.label.as_ref()));
        }
        table.row(cells);
    }
    table.render(terminal)
}

/// `memory`: with the column of peak memory.
pub(crate) fn tasks(rows: &[TaskRow], memory: bool, now: UnixTime, terminal: &Terminal) -> String {
    // Without a terminal the columns are always the same.
    let errors = !terminal.stdout || rows.iter().any(|row| row.error.is_some());
    let repeated = !terminal.stdout || rows.iter().any(|row| row.attempts > 1);
    let mut table = Table::new().column("TASK").column("STATE").number("ENGINE");
    if repeated {
        table = table.number("ATTEMPTS");
    }
    table = table.column("TIME");
    if memory {
        table = table.number("MEMORY");
    }
    // On a narrow terminal, inputs and errors need the space.
    let roomy = !terminal.stdout || terminal.width >= 100;
    if roomy {
        table = table.column("COMPLETED");
    }
    table = table.text("INPUT");
    if errors {
        table = table.text("ERROR");
    }
    for row in rows {
        let so_far = row.started.filter(|_| !row.state.is_done()).map(|started| now.since(started));
        let mut cells = vec![
            Cell::new(row.task),
            Cell::new(row.state).tone(tone(row.state)),
            Cell::or_dash(row.engine),
        ];
        if repeated {
            cells.push(Cell::new(row.attempts));
        }
        cells.push(Cell::or_dash(row.duration.or(so_far).map(times::duration)));
        if memory {
            cells.push(Cell::or_dash(row.peak_memory.map(rounded)));
        }
        if roomy {
            cells.push(Cell::or_dash(row.completed.map(|t| when(t, now, terminal))));
        }
        cells.push(Cell::or_dash(row.input.as_ref().map(|input| shorter(input.get()))));
        if errors {
            cells.push(Cell::or_dash(row.error.as_ref().map(error_line)));
        }
        table.row(cells);
    }
    table.render(terminal)
}

/// The maximum length of a cell, on any output.
fn shorter(text: &str) -> String {
    const MAX_LENGTH: usize = 500;
    match text.char_indices().nth(MAX_LENGTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// The details of one task.
pub(crate) fn task(row: &TaskRow, details: &Details, now: UnixTime) -> String {
    let mut text = format!("task {}: {}\n", row.task, row.state);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("  {name:<11}{value}\n"));
        }
    };
    let point = |t: UnixTime| format!("{} ({})", times::local_time(t), times::ago(now, t));
    line("why", details.explanation.as_deref().map(one_line));
    line("work", details.definition.as_ref().map(|d| work(&d.work)));
    line("name", details.definition.as_ref().and_then(|d| d.options.name.clone()));
    line("label", row.label.clone());
    line("input", row.input.as_ref().map(|input| input.get().to_string()));
    line("error", row.error.as_ref().map(|e| one_line(&error_line(e))));
    line("exit code", row.exit_code.map(|code| code.to_string()));
    line("engine", place(row.engine, row.host.as_deref()));
    line("attempts", Some(row.attempts.to_string()));
    line("submitted", Some(point(row.submitted)));
    line("started", row.started.map(point));
    line("completed", row.completed.map(point));
    line("duration", row.duration.map(times::duration));
    let options = details.definition.as_ref().map(|definition| &definition.options);
    let asked_for = |ask: Option<Ask>| options.and_then(|options| asked_for(options, ask.unwrap_or_default()));
    line("asked for", asked_for(row.ask));
    line("memory", row.peak_memory.map(|bytes| format!("peak {}", rounded(bytes))));
    line("msg_id", row.msg_id.clone());
    if let (Some(size), None) = (row.value_size, &row.value) {
        let task = row.task;
        line(
            "value",
            Some(format!("JSON of {}: pcluster results {task} --json", shown::size(size))),
        );
    } else if let Some(value) = &row.value {
        let pickled = row.pickled.as_ref();
        let note = pickled.map(|p| format!("  (a rendering; the exact value of type {} is stored)", p.python_type));
        line("value", Some(format!("{}{}", value.get(), note.unwrap_or_default())));
    } else if let Some(repr) = &row.repr {
        line("value", Some(repr.clone()));
    }
    let traceback = row.error.as_ref().map(|e| e.traceback.as_str()).unwrap_or_default();
    push_output(&mut text, (row.task, None), [&row.stdout, &row.stderr]);
    push_block(&mut text, "traceback", traceback);
    for attempt in &details.earlier {
        let outcome = &attempt.outcome;
        let why = outcome
            .error
            .as_ref()
            .map(|e| format!(": {}", one_line(&error_line(e))))
            .unwrap_or_default();
        let asked = asked_for(attempt.ask)
            .map(|asked| format!(", asked for {asked}"))
            .unwrap_or_default();
        let used = outcome.peak_memory.map(|bytes| format!(", peak memory {}", rounded(bytes)));
        let lasted = times::duration(outcome.ended.since(outcome.started)) + &used.unwrap_or_default();
        let place = place(attempt.engine, attempt.host.as_deref())
            .map(|p| format!(" on engine {p}"))
            .unwrap_or_default();
        text.push_str(&format!(
            "\nearlier attempt {}{place}: {} after {lasted}{asked}{why}\n",
            attempt.run, outcome.status
        ));
        let traceback = outcome.error.as_ref().map(|e| e.traceback.as_str()).unwrap_or_default();
        push_output(&mut text, (row.task, Some(attempt.run)), [&outcome.stdout, &outcome.stderr]);
        push_block(&mut text, "traceback", traceback);
    }
    visible(&text).into_owned()
}

/// `1 cpu, 8G, 30 s`; None if that is an engine alone.
fn asked_for(options: &MapOptions, ask: Ask) -> Option<String> {
    let request = options.request_with(&ask).map(|request| request.to_string());
    let limit = ask.limit_s().or(options.timeout_s).map(times::duration);
    let parts: Vec<String> = request.into_iter().chain(limit).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn rounded(bytes: u64) -> String {
    Memory { bytes }.rounded()
}

/// `3 on node17`
fn place(engine: Option<EngineId>, host: Option<&str>) -> Option<String> {
    let id = engine?;
    Some(match host {
        Some(host) if !host.is_empty() => format!("{id} on {host}"),
        _ => id.to_string(),
    })
}

fn work(work: &Work) -> String {
    match work {
        Work::Call { .. } => format!("call {}", work_name(work)),
        Work::Command { .. } => format!("command {}", work_name(work)),
        Work::Execute { .. } => format!("execute {}", work_name(work)),
        other => other.kind().to_string(),
    }
}

fn work_name(work: &Work) -> String {
    one_line(&work.default_name())
}

/// The beginning of a task's output, and how to get the rest.
fn push_output(text: &mut String, (task, run): (TaskId, Option<u32>), outputs: [&Output; 2]) {
    for (stream, output) in Stream::OUTPUTS.into_iter().zip(outputs) {
        let name = stream.as_str();
        let (shown, more) = shown::shown(output);
        push_block(text, name, &shown);
        if more > 0 {
            let run = run.map(|run| format!(" --run {run}")).unwrap_or_default();
            text.push_str(&format!(
                "  … {} more: pcluster results {task}{run} --{name} > FILE\n",
                shown::size(more)
            ));
        }
    }
}

/// An indented text under a heading.
fn push_block(text: &mut String, name: &str, block: &str) {
    if block.is_empty() {
        return;
    }
    text.push_str(&format!("{name}:\n"));
    for line in shown::escaped(block.as_bytes()).lines() {
        text.push_str(&format!("  {line}\n"));
    }
}

/// The range of tasks of a map, for errors.
pub(crate) fn extent(map: &MapRow) -> String {
    match map.counts.total {
        0 => format!("map {} has no tasks", map.map),
        1 => format!("map {} has one task, {}", map.map, TaskId::new(map.map, 0)),
        total => {
            let last = TaskId::new(map.map, total.saturating_sub(1).min(u64::from(u32::MAX)) as u32);
            format!("map {} has the tasks {} to {last}", map.map, TaskId::new(map.map, 0))
        }
    }
}

/// Maximum number of engines and hosts listed in one line.
const MAX_NAMED: usize = 8;

/// `engines 3, 4 on node7 cannot run Python functions, only commands: REASON`, one line per reason.
pub(crate) fn unavailable_engines(engines: &[EngineStatus]) -> Vec<String> {
    let mut by_reason: Vec<(&str, Vec<&EngineStatus>)> = Vec::new();
    for engine in engines {
        let Some(reason) = engine.reason.as_deref() else { continue };
        match by_reason.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, of_reason)) => of_reason.push(engine),
            None => by_reason.push((reason, vec![engine])),
        }
    }
    let line = |(reason, of_reason): (&str, Vec<&EngineStatus>)| {
        let mut hosts: Vec<&str> = of_reason
            .iter()
            .map(|e| e.facts.host.as_str())
            .filter(|host| !host.is_empty())
            .collect();
        hosts.dedup();
        let mut ids: Vec<String> = of_reason.iter().take(MAX_NAMED).map(|e| e.id.to_string()).collect();
        if of_reason.len() > MAX_NAMED {
            ids.push(format!("{} more", of_reason.len() - MAX_NAMED));
        }
        hosts.truncate(MAX_NAMED);
        let engines = if of_reason.len() == 1 { "engine" } else { "engines" };
        format!(
            "{engines} {} on {} cannot run Python functions, only commands: {reason}",
            ids.join(", "),
            hosts.join(", ")
        )
    };
    by_reason.into_iter().map(line).collect()
}
