//! What an engine does, why it takes nothing more, or how it ended.
use super::shared::{Text, ask, recorded, when};
use crate::cli::explained::engine_name;
use crate::cli::output::{json, times};
use crate::cli::records::Records;
use crate::cli::{CommandError, Context};
use crate::client::ExplainRequest;
use crate::model::engine::{EngineFacts, EngineRow, EngineState, EngineStatus};
use crate::model::explanation::{EngineWork, about};
use crate::model::job::JobRow;
use crate::model::query::EngineQuery;
use crate::model::{EngineId, MapId, UnixTime};
use serde::Serialize;

/// The maximum number of its tasks that are named.
const MAX_TASKS: usize = 8;

#[derive(Serialize)]
struct View<'a> {
    engine: EngineId,
    /// As `pcluster engines` shows it, or `gone`.
    state: &'a str,
    /// One line.
    explanation: &'a str,
    host: &'a str,
    pid: u32,
    job: Option<&'a str>,
    /// The recorded state of that job.
    job_state: Option<String>,
    ends: Option<String>,
    registered: String,
    gone: Option<String>,
    reason: Option<&'a str>,
    finished: Option<u64>,
    work: Option<&'a EngineWork>,
}

pub(super) fn explain(id: EngineId, context: &Context) -> Result<(), CommandError> {
    let records = Records::open(context)?;
    let mut live = ask(&records, &ExplainRequest::Engine(id), context)?.unwrap_or_default();
    if let Records::Stopped(reader) = &records {
        live.engines = reader.engines(&EngineQuery::Id(id))?;
    }
    let (present, row) = (live.present.first(), live.engines.last());
    let Some(facts) = present.map(|engine| &engine.facts).or(row.map(|row| &row.facts)) else {
        return Err(CommandError::not_found(format!("no engine {id}")).hint("`pcluster engines` lists the engines"));
    };
    let now = times::now();
    let (state, line) = match (present, row) {
        (Some(engine), _) => (engine.state.as_str(), current(engine, live.work.as_ref(), now)),
        (None, Some(row)) => ("gone", past(row, &records, now, context)),
        (None, None) => ("gone", String::new()),
    };
    let job = job_of(facts, &records)?;
    if context.json {
        return json::print(&View {
            engine: id,
            state,
            explanation: &line,
            host: &facts.host,
            pid: facts.pid,
            job: Some(facts.job.as_str()).filter(|job| !job.is_empty()),
            job_state: job.as_ref().map(recorded),
            ends: facts.ends.map(UnixTime::to_iso),
            registered: present
                .map_or_else(|| row.map(|row| row.registered), |e| Some(e.registered))
                .unwrap_or_default()
                .to_iso(),
            gone: row.and_then(|row| row.gone).filter(|_| present.is_none()).map(UnixTime::to_iso),
            reason: present.map_or_else(|| row.and_then(|row| row.reason.as_deref()), |engine| engine.reason.as_deref()),
            finished: present.map(|engine| engine.finished),
            work: live.work.as_ref(),
        });
    }
    let mut text = Text::new(context);
    text.line("", 2, &format!("{}: {line}", engine_name(id.0, &facts.host)));
    if let Some(work) = &live.work {
        write_work(&mut text, work, present);
    }
    if let Some(ends) = facts.ends.filter(|_| present.is_some()) {
        text.line("  ", 4, &format!("its job ends in {}", about(ends.since(now))));
    }
    if !facts.job.is_empty() {
        let state = job.as_ref().map(|row| format!(": {}", recorded(row))).unwrap_or_default();
        text.line("  ", 4, &format!("job {}{state}", facts.job));
    }
    text.print()
}

/// `busy with 1.3 for 3 min, then 1.4, 1.5`
fn current(engine: &EngineStatus, work: Option<&EngineWork>, now: UnixTime) -> String {
    let mut text = engine.state.to_string();
    if engine.state == EngineState::Silent {
        text.push_str(": no message from it; its tasks stay with it until its lease expires");
    }
    if let Some(reason) = &engine.reason {
        text.push_str(&format!(": it cannot run Python, only commands: {reason}"));
    }
    let Some(work) = work.filter(|work| !work.tasks.is_empty()) else {
        return text;
    };
    text.push_str(&format!("; it runs {}", work.tasks[0]));
    if let Some(began) = work.began {
        text.push_str(&format!(" for {}", about(now.since(began))));
    }
    let rest = &work.tasks[1..];
    if !rest.is_empty() {
        let named: Vec<String> = rest.iter().take(MAX_TASKS).map(ToString::to_string).collect();
        let more = match rest.len().saturating_sub(MAX_TASKS) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        text.push_str(&format!(", then {}{more}", named.join(", ")));
    }
    text
}

fn past(row: &EngineRow, records: &Records, now: UnixTime, context: &Context) -> String {
    let Some(gone) = row.gone else {
        return match records {
            Records::Stopped(_) => "it was there when the cluster stopped".into(),
            Records::Running { .. } => "the records do not say how it left".into(),
        };
    };
    let lasted = times::duration(gone.since(row.registered));
    let why = row.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("left {} after {lasted}{why}", when(gone, now, context))
}

fn write_work(text: &mut Text, work: &EngineWork, present: Option<&EngineStatus>) {
    if !work.node_free.is_empty() {
        let uses = present.and_then(|engine| engine.uses.as_ref());
        let uses = uses.map(|request| format!("; its task has {request}")).unwrap_or_default();
        text.line("  ", 4, &format!("free on its node: {}{uses}", work.node_free));
    }
    for refused in &work.refuses {
        text.line("  ", 4, &format!("it takes no task of {}: {}", maps(&refused.maps), refused.text));
    }
}

/// `map 3`, `maps 3, 4`
fn maps(maps: &[MapId]) -> String {
    let names: Vec<String> = maps.iter().map(ToString::to_string).collect();
    format!("map{} {}", if maps.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// The recorded job of an engine.
fn job_of(facts: &EngineFacts, records: &Records) -> Result<Option<JobRow>, CommandError> {
    if facts.job.is_empty() {
        return Ok(None);
    }
    let rows = records.jobs()?;
    Ok(rows.into_iter().rev().find(|row| row.is(&facts.job)))
}
