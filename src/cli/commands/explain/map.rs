//! Why a map is in its state.
use super::shared::{Text, ask};
use crate::cli::explained::{self, Jobs};
use crate::cli::output::{counted, json, times};
use crate::cli::records::{Records, no_such_map};
use crate::cli::views::{MapView, error_line, map_state};
use crate::cli::{CommandError, Context};
use crate::client::ExplainRequest;
use crate::cluster::outlook::Absent;
use crate::model::explanation::{OpenMap, WaitReasons};
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{MapRow, TaskState};
use crate::model::{MapId, TaskId};
use serde::Serialize;

/// The maximum number of failed tasks whose causes are compared, and of causes shown.
const MAX_FAILED: u64 = 2000;
const MAX_CAUSES: usize = 5;

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    map: MapView<'a>,
    /// One line.
    explanation: &'a str,
    open: Option<&'a OpenMap>,
    waiting: Option<&'a WaitReasons>,
    /// Jobs and processes whose engines do not run, if tasks wait.
    absent: &'a [Absent],
    /// Why tasks failed, the most frequent cause first.
    causes: &'a [Cause],
}

#[derive(Debug, PartialEq, Serialize)]
struct Cause {
    cause: String,
    tasks: u64,
    /// The first of them.
    task: TaskId,
}

pub(super) fn explain(map: MapId, context: &Context) -> Result<(), CommandError> {
    let records = Records::open(context)?;
    find(map, &records)?;
    let live = ask(&records, &ExplainRequest::Map(map), context)?.unwrap_or_default();
    // What the controller has answered is on record now.
    let row = find(map, &records)?;
    let absent = match live.waiting {
        Some(_) => Jobs::of(context).absent(),
        None => Vec::new(),
    };
    let causes = match row.counts.failed() {
        0 => Vec::new(),
        _ => causes(map, &records)?,
    };
    let line = explained::describe(&live, &absent, times::now()).unwrap_or_else(|| still(&row, &records, context));
    if context.json {
        return json::print(&View {
            map: MapView::new(&row),
            explanation: &line,
            open: live.map.as_ref(),
            waiting: live.waiting.as_ref(),
            absent: &absent,
            causes: &causes,
        });
    }
    let mut text = Text::new(context);
    let counts = &row.counts;
    let mut done = format!("{} of {} done", counts.done(), counted(counts.total, "task"));
    if counts.failed() > 0 {
        done.push_str(&format!(", {} failed", counts.failed()));
    }
    text.line(&format!("map {map}: "), 2, &format!("{done}; {line}"));
    for Cause { cause, tasks, task } in &causes {
        text.line("  ", 4, &format!("{} failed: {cause}", counted(*tasks, "task")));
        text.line("    ", 4, &format!("see pcluster explain{} {task}", context.options()));
    }
    text.print()
}

pub(super) fn find(map: MapId, records: &Records) -> Result<MapRow, CommandError> {
    let query = MapQuery {
        maps: vec![map],
        ..MapQuery::default()
    };
    let none = || no_such_map(map).hint("it was purged, or never existed");
    records.maps(&query)?.pop().ok_or_else(none)
}

/// The state of a map that the controller says nothing about.
fn still(row: &MapRow, records: &Records, context: &Context) -> String {
    match (row.completed, records) {
        (Some(_), _) => match map_state(row) {
            "ok" => "it has finished".into(),
            _ => format!(
                "it has finished; run failed tasks again: pcluster resubmit{} {} --failed",
                context.options(),
                row.map
            ),
        },
        (None, Records::Stopped(_)) => format!("the cluster is stopped; pcluster start{} continues it", context.options()),
        (None, Records::Running { .. }) if !row.closed => "its inputs are still being sent".into(),
        (None, Records::Running { .. }) => map_state(row).into(),
    }
}

fn causes(map: MapId, records: &Records) -> Result<Vec<Cause>, CommandError> {
    let query = TaskQuery {
        maps: vec![map],
        states: TaskState::ALL.into_iter().filter(|state| state.is_failed()).collect(),
        limit: Some(MAX_FAILED),
        brief: true,
        ..TaskQuery::default()
    };
    let mut causes: Vec<Cause> = Vec::new();
    for row in records.tasks(&query)?.0 {
        let cause = row.error.as_ref().map(error_line).unwrap_or_else(|| row.state.to_string());
        match causes.iter_mut().find(|known| known.cause == cause) {
            Some(known) => known.tasks += 1,
            None => causes.push(Cause {
                cause,
                tasks: 1,
                task: row.task,
            }),
        }
    }
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.tasks));
    causes.truncate(MAX_CAUSES);
    Ok(causes)
}
