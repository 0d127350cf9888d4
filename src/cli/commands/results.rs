//! `pcluster results`: lists maps and tasks, or shows single tasks in full.
use crate::cli::ids::{self, Ids};
use crate::cli::output::counted;
use crate::cli::output::sink::Sink;
use crate::cli::output::{json, shown, times};
use crate::cli::records::{Details, Records};
use crate::cli::values::Style;
use crate::cli::views::{self, AttemptView, MapView, RequestView, TaskView};
use crate::cli::{CommandError, Context, Exit, tables};
use crate::model::TaskId;
use crate::model::output::Stream;
use crate::model::query::{Column, MapQuery, TaskQuery, parse_conditions};
use crate::model::targets::Targets;
use crate::model::task::{TaskRow, TaskState};
use std::path::PathBuf;

/// The maximum number of rows of a table without --limit.
const TABLE_ROWS: u64 = 1000;
/// The maximum number of tasks shown in full; more are shown as a table.
const MAX_IN_FULL: usize = 20;

/// List maps, their tasks, or the details of a task
///
/// Without arguments, lists all maps. `results 1` lists the tasks of map 1. `results 1.3` shows one task in full, with its output
/// and traceback. Also works on a stopped cluster, from the profile's database file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster results 1 --failed\n  pcluster results 1.3 --stdout > output.txt\n  pcluster results --where 'duration>=10m and host~node3' --sort -duration"
)]
pub(crate) struct Args {
    /// Show these maps (`1`), tasks (`1.3`) or ranges (`1-3`, `1.3-9`)
    ids: Vec<Ids>,
    /// Sort by this column; a leading - reverses the order
    #[arg(long, value_name = "[-]COLUMN", allow_hyphen_values = true, value_parser = parse_sort)]
    sort: Option<(Column, bool)>,
    /// Show at most N rows; 0 for all [default: 1000 in tables, else all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Skip the first N rows
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    offset: u64,
    /// Show the peak memory of each task, as a column of the table
    #[arg(long)]
    memory: bool,
    /// Print one JSON object per line
    #[arg(long, conflicts_with = "csv")]
    jsonl: bool,
    /// Print CSV
    #[arg(long)]
    csv: bool,
    /// Write the exact values as one Python pickle: a list, with an exception for each task without a value
    #[arg(long, conflicts_with_all = ["csv", "jsonl"])]
    pickle: bool,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the stdout of one task, unchanged
    #[arg(long, conflicts_with_all = ["stderr", "jsonl", "csv", "sort", "limit", "offset"])]
    stdout: bool,
    /// Write the stderr of one task, unchanged
    #[arg(long, conflicts_with_all = ["jsonl", "csv", "sort", "limit", "offset"])]
    stderr: bool,
    /// With --stdout or --stderr: select an earlier run [default: the current run]
    #[arg(long, value_name = "N")]
    run: Option<u32>,
    #[command(flatten)]
    filter: Filter,
}

/// Selects tasks.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// Select unfinished tasks
    #[arg(long)]
    pending: bool,
    /// Select failed tasks
    #[arg(long)]
    failed: bool,
    /// Select running tasks
    #[arg(long)]
    running: bool,
    /// Select tasks in these states (waiting ready assigned running ok error aborted timeout lost)
    #[arg(long, value_name = "STATE,…", value_delimiter = ',')]
    state: Vec<TaskState>,
    /// Select tasks of these engines (`0,3,5-8`)
    #[arg(long, value_name = "ENGINES")]
    engine: Option<Targets>,
    /// Select by time of submission: an age (`2h`) or a date (`2026-11-20`, `2026-11-20T21:10`)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Select maps with this label
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Select by conditions, for example 'duration>=10m and host~node3'
    #[arg(long = "where", value_name = "CONDITIONS")]
    conditions: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
    Jsonl,
    Csv,
    Pickle,
}

fn parse_sort(text: &str) -> Result<(Column, bool), String> {
    match text.strip_prefix('-') {
        Some(column) => Ok((column.parse()?, true)),
        None => Ok((text.parse()?, false)),
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let format = match (args.jsonl, args.csv, context.json) {
        (true, _, true) | (_, true, true) => {
            return Err(CommandError::usage("--json cannot be combined with --jsonl or --csv")
                .hint("--json prints one document, --jsonl one object per line"));
        }
        (true, ..) => Format::Jsonl,
        (_, true, _) => Format::Csv,
        (.., true) => Format::Json,
        _ => Format::Table,
    };
    let format = match (args.pickle, context.json) {
        (true, true) => return Err(CommandError::usage("--json cannot be combined with --pickle")),
        (true, false) => Format::Pickle,
        (false, _) => format,
    };
    if format == Format::Pickle && is_about_maps(&args) {
        return Err(
            CommandError::usage("--pickle writes the values of tasks, and no tasks are selected")
                .hint("pcluster results 1 --pickle -o values.pickle"),
        );
    }
    if format == Format::Pickle && args.output.is_none() && context.terminal.stdout {
        return Err(
            CommandError::usage("--pickle writes binary data, and stdout is a terminal").hint("write to a file: --output values.pickle")
        );
    }
    let query = query(&args)?;
    let stream = match (args.stdout, args.stderr) {
        (true, _) => Some(Stream::Stdout),
        (_, true) => Some(Stream::Stderr),
        _ if args.run.is_some() => {
            return Err(CommandError::usage("--run needs --stdout or --stderr").hint("pcluster results 1.3 --run 1 --stdout"));
        }
        _ => None,
    };
    if let Some(stream) = stream {
        return write_output(&args, &query, stream, context);
    }
    let records = Records::open(context)?;
    let mut sink = Sink::open(args.output.as_deref())?;
    let shown = if is_about_maps(&args) {
        show_maps(&args, &query, &records, format, &mut sink, context)?
    } else {
        records.must_exist(&query.maps)?;
        if query.maps.is_empty() && is_single(&args, &query) && matches!(format, Format::Table | Format::Json) {
            show_in_full(&query, &records, format, &mut sink)?
        } else {
            show_tasks(&args, query, &records, format, &mut sink, context)?
        }
    };
    if let Some(file) = sink.file() {
        context.note(format!("{shown} written to {}", file.display()));
    }
    sink.finish()?;
    Ok(Exit::Fine)
}

/// Writes the complete stdout or stderr of one task.
fn write_output(args: &Args, query: &TaskQuery, stream: Stream, context: &Context) -> Result<Exit, CommandError> {
    let (true, [task]) = (query.maps.is_empty() && !context.json, query.tasks.as_slice()) else {
        return Err(
            CommandError::usage(format!("--{} writes the output of exactly one task", stream.as_str()))
                .hint(format!("select one: pcluster results 1.3 --{} > FILE", stream.as_str())),
        );
    };
    let records = Records::open(context)?;
    let mut sink = None;
    let mut start = 0;
    loop {
        let (size, bytes) = records.output(*task, args.run, stream, start)?;
        let sink = match &mut sink {
            Some(sink) => sink,
            // Only once the task is known to exist.
            none => none.insert(Sink::open(args.output.as_deref())?),
        };
        sink.put(|out| out.write_all(&bytes))?;
        start += bytes.len() as u64;
        if bytes.is_empty() || start >= size {
            break;
        }
    }
    if let Some(sink) = sink {
        if let Some(file) = sink.file() {
            context.note(format!("{} written to {}", shown::size(start), file.display()));
        }
        sink.finish()?;
    }
    Ok(Exit::Fine)
}

/// Whether maps are listed: true unless a filter on tasks is given.
fn is_about_maps(args: &Args) -> bool {
    let f = &args.filter;
    let of_tasks = f.pending || f.failed || f.running || !f.state.is_empty() || f.engine.is_some() || !f.conditions.is_empty();
    args.ids.is_empty() && !of_tasks && args.sort.is_none() && args.offset == 0
}

fn is_single(args: &Args, query: &TaskQuery) -> bool {
    let plain = TaskQuery {
        tasks: query.tasks.clone(),
        ..TaskQuery::default()
    };
    args.limit.is_none() && *query == plain && (1..=MAX_IN_FULL).contains(&query.tasks.len())
}

fn query(args: &Args) -> Result<TaskQuery, CommandError> {
    let filter = &args.filter;
    let (maps, tasks) = ids::sort(&args.ids);
    if let (Some(map), Some(task)) = (maps.first(), tasks.first()) {
        return Err(CommandError::usage(format!(
            "{map} is a map and {task} is a task: select either maps or tasks"
        )));
    }
    let mut states = filter.state.clone();
    let wanted = |state: TaskState| {
        (filter.pending && !state.is_done()) || (filter.failed && state.is_failed()) || (filter.running && state == TaskState::Running)
    };
    states.extend(TaskState::ALL.into_iter().filter(|state| wanted(*state)));
    states.sort_unstable();
    states.dedup();
    let mut conditions = Vec::new();
    for text in &filter.conditions {
        conditions.extend(parse_conditions(text).map_err(|why| CommandError::usage(format!("--where: {why}")))?);
    }
    let since = filter.since.as_deref().map(|text| times::parse_since(text, times::now()));
    Ok(TaskQuery {
        maps,
        tasks,
        states,
        engines: match &filter.engine {
            Some(Targets::Some(engines)) => engines.clone(),
            _ => Vec::new(),
        },
        label: filter.label.clone(),
        since: since.transpose().map_err(|why| CommandError::usage(format!("--since: {why}")))?,
        conditions,
        sort: args.sort,
        limit: args.limit.filter(|n| *n > 0),
        offset: args.offset,
        brief: false,
    })
}

/// Writes the maps; returns a description of what was written.
fn show_maps(
    args: &Args,
    query: &TaskQuery,
    records: &Records,
    format: Format,
    sink: &mut Sink,
    context: &Context,
) -> Result<String, CommandError> {
    let rows = records.maps(&MapQuery {
        maps: Vec::new(),
        since: query.since,
        label: query.label.clone(),
        limit: args.limit.filter(|n| *n > 0),
    })?;
    match format {
        Format::Table if rows.is_empty() => context.note(match query.since.is_some() || query.label.is_some() {
            true => "no matching maps".to_string(),
            false => format!("no maps yet in {}", context.describe_cluster()),
        }),
        Format::Table => {
            let terminal = context.terminal_for(sink.file().is_some());
            sink.text(&tables::maps(&rows, times::now(), &terminal))?;
        }
        Format::Json => sink.put(|out| {
            let mut list = json::List::begin(out, "maps")?;
            rows.iter().try_for_each(|row| list.item(out, &MapView::new(row)))?;
            list.end(out)
        })?,
        Format::Jsonl => sink.put(|out| rows.iter().try_for_each(|row| json::line(out, &MapView::new(row))))?,
        Format::Csv => sink.put(|out| {
            views::csv_line(out, views::MAP_CSV_HEADER)?;
            rows.iter().try_for_each(|row| views::csv_line(out, views::map_csv(row)))
        })?,
        // Rejected earlier: maps have no values.
        Format::Pickle => {}
    }
    Ok(counted(rows.len() as u64, "map"))
}

fn show_tasks(
    args: &Args,
    mut query: TaskQuery,
    records: &Records,
    format: Format,
    sink: &mut Sink,
    context: &Context,
) -> Result<String, CommandError> {
    let (mut count, mut long) = (0u64, 0u64);
    let is_long = |row: &TaskRow| u64::from(!row.stdout.is_whole() || !row.stderr.is_whole());
    match format {
        Format::Table => {
            query.brief = true;
            query.limit = Some(args.limit.unwrap_or(TABLE_ROWS)).filter(|n| *n > 0);
            let mut rows = Vec::new();
            records.each_task(&query, &mut |row| {
                rows.push(row);
                Ok(())
            })?;
            count = rows.len() as u64;
            if rows.is_empty() {
                context.note("no matching tasks");
            } else {
                let terminal = context.terminal_for(sink.file().is_some());
                let sorted = query.sort.is_some_and(|(column, _)| column == Column::PeakMemory);
                let memory = args.memory || sorted || query.conditions.iter().any(|of| of.column == Column::PeakMemory);
                sink.text(&tables::tasks(&rows, memory, times::now(), &terminal))?;
            }
            if args.limit.is_none() && count == TABLE_ROWS {
                let one = TaskQuery {
                    limit: Some(1),
                    ..query.clone()
                };
                let (_, matching) = records.tasks(&one)?;
                if matching > query.offset + count {
                    context.note(format!("showing {count} of {matching} tasks; --limit 0 shows all"));
                }
            }
        }
        Format::Json => {
            let mut list = None;
            sink.put(|out| {
                list = Some(json::List::begin(out, "tasks")?);
                Ok(())
            })?;
            let mut list = list.ok_or_else(|| CommandError::internal("list was not opened"))?;
            records.each_task(&query, &mut |mut row| {
                (count, long) = (count + 1, long + is_long(&row));
                records.fetch_value(&mut row)?;
                sink.put(|out| list.item(out, &TaskView::new(&row)))
            })?;
            sink.put(|out| list.end(out))?;
        }
        Format::Jsonl => records.each_task(&query, &mut |mut row| {
            (count, long) = (count + 1, long + is_long(&row));
            records.fetch_value(&mut row)?;
            sink.put(|out| json::line(out, &TaskView::new(&row)))
        })?,
        Format::Csv => {
            sink.put(|out| views::csv_line(out, views::TASK_CSV_HEADER))?;
            records.each_task(&query, &mut |mut row| {
                (count, long) = (count + 1, long + is_long(&row));
                // Its cells have what is readable.
                if row.pickled.is_none() {
                    records.fetch_value(&mut row)?;
                }
                sink.put(|out| views::csv_line(out, views::task_csv(&row)))
            })?;
        }
        Format::Pickle => {
            let style = |command| Style::Pickle { command };
            sink.put(|out| style(false).begin(out))?;
            records.each_task(&query, &mut |mut row| {
                count += 1;
                records.fetch_value(&mut row)?;
                sink.put(|out| style(row.exit_code.is_some()).write(&row, out, &mut std::io::sink()))
            })?;
            sink.put(|out| style(false).end(out))?;
        }
    }
    if long > 0 {
        context.note(format!(
            "note: {} with truncated output; full output: pcluster results TASK --stdout > FILE",
            counted(long, "task")
        ));
    }
    Ok(counted(count, "task"))
}

/// Single tasks in full, in the order given.
fn show_in_full(query: &TaskQuery, records: &Records, format: Format, sink: &mut Sink) -> Result<String, CommandError> {
    let (mut rows, _) = records.tasks(query)?;
    let place = |id: TaskId| query.tasks.iter().position(|task| *task == id);
    if let Some(missing) = query.tasks.iter().find(|task| !rows.iter().any(|row| row.task == **task)) {
        return Err(records.no_such_task(*missing));
    }
    rows.sort_by_key(|row| place(row.task));
    let mut found: Vec<(TaskRow, Details)> = Vec::new();
    for mut row in rows {
        let mut details = records.details(row.task)?;
        if !row.state.is_done() {
            details.explanation = records.explanation(row.task)?;
        }
        if format == Format::Json {
            records.fetch_value(&mut row)?;
        }
        found.push((row, details));
    }
    if format == Format::Json {
        sink.put(|out| {
            let mut list = json::List::begin(out, "tasks")?;
            for (row, details) in &found {
                let mut view = TaskView::new(row);
                view.definition = details.definition.as_ref();
                view.explanation = details.explanation.as_deref();
                view.request = view.definition.map(|definition| RequestView::new(definition, row.ask.as_ref()));
                let attempts = details.earlier.iter();
                view.earlier = Some(attempts.map(|attempt| AttemptView::new(attempt, view.definition)).collect());
                list.item(out, &view)?;
            }
            list.end(out)
        })?;
    } else {
        let now = times::now();
        let texts: Vec<_> = found.iter().map(|(row, details)| tables::task(row, details, now)).collect();
        sink.text(&texts.join("\n"))?;
    }
    Ok(counted(found.len() as u64, "task"))
}

#[cfg(test)]
mod tests;
