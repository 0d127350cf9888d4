//! The state of a batch job, and its engines.
use super::shared::{Text, ask, when};
use crate::cli::explained::engine_name;
use crate::cli::output::{counted, json, times};
use crate::cli::records::Records;
use crate::cli::{CommandError, Context};
use crate::client::ExplainRequest;
use crate::cluster::outlook::{self, JobElement};
use crate::launchers::Stage;
use crate::model::engine::EngineStatus;
use crate::model::job::JobRow;
use crate::model::query::EngineQuery;
use crate::model::{EngineId, UnixTime};
use serde::Serialize;

/// The maximum numbers of elements and engines shown one by one.
const MAX_ELEMENTS: usize = 10;
const MAX_ENGINES: usize = 20;

#[derive(Serialize)]
struct View<'a> {
    job: &'a str,
    elements: Vec<ElementView>,
    engines: Vec<EngineView>,
}

#[derive(Serialize)]
struct ElementView {
    launcher: String,
    job: String,
    name: String,
    element: u32,
    engines: u32,
    submitted: String,
    state: String,
    reason: String,
    /// Whether the batch system was asked; else the state is the last recorded one.
    asked: bool,
    /// For a recorded state: when it was first seen.
    since: Option<String>,
    /// The batch system reports that it runs.
    #[serde(skip)]
    is_running: bool,
}

#[derive(Serialize)]
struct EngineView {
    engine: EngineId,
    host: String,
    state: String,
    registered: String,
    gone: Option<String>,
    reason: Option<String>,
    #[serde(skip)]
    line: String,
}

pub(super) fn explain(job: &str, context: &Context) -> Result<(), CommandError> {
    if job.trim().is_empty() {
        return Err(CommandError::usage("--job needs the id of a batch job").hint("`pcluster list` shows the jobs of clusters"));
    }
    let records = Records::open(context)?;
    let mut live = ask(&records, &ExplainRequest::Job(job.into()), context)?.unwrap_or_default();
    if let Records::Stopped(reader) = &records {
        live.engines = reader.engines(&EngineQuery::OfJob(job.into()))?;
    }
    let asked = outlook::elements(&context.profile_dir()?, &context.cluster_id, job);
    let rows: Vec<JobRow> = records.jobs()?.into_iter().filter(|row| row.is(job)).collect();
    let now = times::now();
    let elements = elements(asked, rows);
    let engines = engines(&live.present, &live.engines, now, context);
    if elements.is_empty() && engines.is_empty() {
        return Err(CommandError::not_found(format!("{} has no job {job}", context.describe_cluster()))
            .hint("`pcluster list` shows the jobs of clusters"));
    }
    if context.json {
        return json::print(&View { job, elements, engines });
    }
    let mut text = Text::new(context);
    // What does not run is what one asks about.
    let mut by_state: Vec<&ElementView> = elements.iter().collect();
    by_state.sort_by_key(|element| element.is_running);
    for element in by_state.into_iter().take(MAX_ELEMENTS) {
        let reason = match element.reason.is_empty() {
            true => String::new(),
            false => format!(": {}", element.reason),
        };
        let source = match &element.since {
            Some(_) if !element.asked => " on record",
            _ => "",
        };
        let engines = match element.engines {
            0 => "the controller".to_string(),
            n => counted(u64::from(n), "engine"),
        };
        let line = format!("{}{reason}{source} ({}, {engines})", element.state, element.launcher);
        text.line(&format!("job {}: ", element.job), 2, &line);
    }
    if elements.is_empty() {
        text.line(&format!("job {job}: "), 2, "not on record, but engines have named it");
    }
    if elements.len() > MAX_ELEMENTS {
        text.line("", 2, &format!("… and {} more elements", elements.len() - MAX_ELEMENTS));
    }
    for engine in engines.iter().take(MAX_ENGINES) {
        text.line("  ", 4, &engine.line);
    }
    if engines.len() > MAX_ENGINES {
        text.line("  ", 4, &format!("… and {} more engines", engines.len() - MAX_ENGINES));
    }
    if engines.is_empty() {
        text.line("  ", 4, "none of its engines has registered");
    }
    text.print()
}

/// What the batch system reports, else what is on record.
fn elements(asked: Vec<JobElement>, rows: Vec<JobRow>) -> Vec<ElementView> {
    let same = |row: &JobRow, element: &JobElement| row.name == element.name && row.element == element.element;
    let is_known = |element: &JobElement| element.stage != Stage::Unknown;
    let mut all: Vec<ElementView> = Vec::new();
    for row in &rows {
        if asked.iter().any(|element| same(row, element) && is_known(element)) {
            continue;
        }
        // Why it could not be asked.
        let why = asked
            .iter()
            .find(|element| same(row, element))
            .map(|element| element.reason.clone());
        let reason = match why {
            Some(why) => format!("{}; it cannot be asked now: {why}", row.reason)
                .trim_start_matches("; ")
                .to_string(),
            None => row.reason.clone(),
        };
        all.push(ElementView {
            launcher: row.launcher.clone(),
            job: match rows.iter().any(|other| other.name == row.name && other.element > 1) {
                true => format!("{}.{}", row.job, row.element),
                false => row.job.clone(),
            },
            name: row.name.clone(),
            element: row.element,
            engines: row.engines,
            submitted: row.submitted.to_iso(),
            state: row.state.clone(),
            reason,
            asked: false,
            since: Some(row.since.to_iso()),
            is_running: false,
        });
    }
    let is_recorded = |element: &JobElement| rows.iter().any(|row| same(row, element));
    for element in asked.iter().filter(|element| is_known(element) || !is_recorded(element)) {
        all.push(ElementView {
            launcher: element.launcher.clone(),
            job: element.job.clone(),
            name: element.name.clone(),
            element: element.element,
            engines: if element.is_controller { 0 } else { element.engines },
            submitted: UnixTime(element.submitted).to_iso(),
            state: match element.stage {
                Stage::Unknown => "unknown".into(),
                _ => element.state.clone(),
            },
            reason: element.reason.clone(),
            asked: is_known(element),
            since: None,
            is_running: element.stage == Stage::Running,
        });
    }
    all.sort_by(|a, b| (&a.name, a.element).cmp(&(&b.name, b.element)));
    all
}

fn engines(present: &[EngineStatus], recorded: &[crate::model::engine::EngineRow], now: UnixTime, context: &Context) -> Vec<EngineView> {
    let mut all: Vec<EngineView> = Vec::new();
    for engine in present {
        let facts = &engine.facts;
        all.push(EngineView {
            engine: engine.id,
            host: facts.host.clone(),
            state: engine.state.to_string(),
            registered: engine.registered.to_iso(),
            gone: None,
            reason: engine.reason.clone(),
            line: format!("{}: {}", engine_name(engine.id.0, &facts.host), engine.state),
        });
    }
    for row in recorded
        .iter()
        .filter(|row| !present.iter().any(|engine| engine.facts.uuid == row.facts.uuid))
    {
        let name = engine_name(row.id.0, &row.facts.host);
        let why = row.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let line = match row.gone {
            Some(gone) => format!("{name}: left {}{why}", when(gone, now, context)),
            None => format!("{name}: it was there when the cluster stopped"),
        };
        all.push(EngineView {
            engine: row.id,
            host: row.facts.host.clone(),
            state: "gone".into(),
            registered: row.registered.to_iso(),
            gone: row.gone.map(UnixTime::to_iso),
            reason: row.reason.clone(),
            line,
        });
    }
    all
}
