//! Why a task is in its state.
use super::attempts::{self, Attempt};
use super::shared::{Text, ask};
use crate::cli::explained::{self, Jobs};
use crate::cli::output::{json, times};
use crate::cli::records::{Details, Records};
use crate::cli::views::error_line;
use crate::cli::{CommandError, Context};
use crate::client::ExplainRequest;
use crate::cluster::outlook::Absent;
use crate::model::TaskId;
use crate::model::explanation::{Placed, WaitReasons};
use crate::model::query::{EngineQuery, TaskQuery};
use crate::model::task::{TaskRow, TaskState};
use serde::Serialize;

#[derive(Serialize)]
struct TaskView<'a> {
    task: TaskId,
    state: TaskState,
    /// One line.
    explanation: &'a str,
    waiting: Option<&'a WaitReasons>,
    placed: Option<&'a Placed>,
    /// Jobs and processes whose engines do not run, if the task waits.
    absent: &'a [Absent],
    attempts: &'a [Attempt],
}

pub(super) fn explain(task: TaskId, context: &Context) -> Result<(), CommandError> {
    let records = Records::open(context)?;
    let request = ExplainRequest::Task(task);
    let mut row = find(task, &records)?;
    let mut live = ask(&records, &request, context)?.unwrap_or_default();
    let is_open = live.waiting.is_some() || live.placed.is_some();
    if !is_open && !row.state.is_done() {
        // It has ended since.
        row = find(task, &records)?;
    }
    if let Records::Stopped(reader) = &records {
        live.engines = reader.engines(&EngineQuery::OfTask(task))?;
    }
    let absent = match live.waiting {
        Some(_) => Jobs::of(context).absent(),
        None => Vec::new(),
    };
    let details = records.details(task)?;
    let attempts = attempts::all(&row, &details.earlier, &live.engines, &records)?;
    let state = match (&live.waiting, &live.placed) {
        (Some(_), _) if row.state.is_done() || row.state >= TaskState::Assigned => TaskState::Ready,
        (_, Some(placed)) if placed.began.is_some() => TaskState::Running,
        (_, Some(_)) if row.state < TaskState::Assigned => TaskState::Assigned,
        _ => row.state,
    };
    let now = times::now();
    let line = explained::describe(&live, &absent, now).unwrap_or_else(|| ended(&row, &details, &records, context));
    if context.json {
        return json::print(&TaskView {
            task,
            state,
            explanation: &line,
            waiting: live.waiting.as_ref(),
            placed: live.placed.as_ref(),
            absent: &absent,
            attempts: &attempts,
        });
    }
    let mut text = Text::new(context);
    text.line(&format!("task {task}: "), 2, &line);
    attempts::write(&mut text, &attempts, details.earlier.len(), now, context);
    text.print()
}

fn find(task: TaskId, records: &Records) -> Result<TaskRow, CommandError> {
    let query = TaskQuery {
        tasks: vec![task],
        ..TaskQuery::default()
    };
    let row = records.tasks(&query)?.0.pop();
    if row.is_none() {
        super::map::find(task.map, records)?;
    }
    row.ok_or_else(|| records.no_such_task(task))
}

/// How a task has ended, or what becomes of it when its cluster is stopped.
fn ended(row: &TaskRow, details: &Details, records: &Records, context: &Context) -> String {
    if !row.state.is_done() {
        return match records {
            Records::Stopped(_) => format!(
                "{} when the cluster stopped; pcluster start{} continues it",
                row.state,
                context.options()
            ),
            Records::Running { .. } => row.state.to_string(),
        };
    }
    let attempts = match details.earlier.len() + usize::from(row.started.is_some() && row.engine.is_some()) {
        0 => "it never started".to_string(),
        1 => "1 attempt".to_string(),
        n => format!("{n} attempts"),
    };
    let mut text = format!("{} ({attempts})", row.state);
    if let Some(error) = &row.error {
        text.push_str(&format!(": {}", error_line(error)));
    } else if let Some(code) = row.exit_code.filter(|code| *code != 0) {
        text.push_str(&format!(": exit code {code}"));
    }
    text
}
