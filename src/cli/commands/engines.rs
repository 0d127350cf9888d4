//! `pcluster engines`: list, add, remove and stop engines of a cluster.
use super::start::{EngineArgs, StartProgressBar};
use crate::cli::context::Terminal;
use crate::cli::interruptible::interruptible;
use crate::cli::nodes;
use crate::cli::output::counted;
use crate::cli::output::table::{Cell, Table, Tone};
use crate::cli::output::{self, json, times};
use crate::cli::tables::unavailable_engines;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, AddOptions, ClusterState, EngineSelection, Removed};
use crate::model::engine::{EngineState, EngineStatus};
use crate::model::targets::Targets;
use crate::model::{EngineId, UnixTime};
use serde::Serialize;

/// List, add, remove or stop engines of a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster engines\n  pcluster engines add 8 --launcher slurm\n  pcluster engines stop 0,3-5")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<EnginesAction>,
}

#[derive(Debug, clap::Subcommand)]
enum EnginesAction {
    /// List the engines (the default)
    List,
    /// Start N more engines
    Add {
        /// Number of engines to add
        n: u32,
        #[command(flatten)]
        how: Box<EngineArgs>,
    },
    /// Remove N engines: first those that have not started, then idle ones
    Remove {
        /// Number of engines to remove
        n: u32,
        /// Do not wait for running tasks; run them again on other engines
        #[arg(long)]
        now: bool,
    },
    /// Stop these engines; their queued tasks go to other engines
    Stop {
        /// Engines to stop: `0,3,5-8`, or `all`
        engines: Targets,
        /// Do not wait for running tasks; run them again on other engines
        #[arg(long)]
        now: bool,
    },
}

impl Args {
    /// Whether the command starts processes.
    pub(crate) fn starts_processes(&self) -> bool {
        matches!(self.action, Some(EnginesAction::Add { .. }))
    }
}

/// An engine as `--json` shows it.
#[derive(Serialize)]
pub(crate) struct EngineView<'a> {
    id: EngineId,
    uuid: &'a str,
    state: &'a str,
    /// Why the engine is unavailable.
    reason: Option<&'a str>,
    /// Whether it is pcluster's own; an `ipengine` serves only ipyparallel's clients.
    native: bool,
    host: &'a str,
    pid: u32,
    pcluster: &'a str,
    python: &'a str,
    assigned: u32,
    finished: u64,
    registered: String,
    /// The batch job of the engine (`4711.3`).
    job: Option<&'a str>,
    /// End of that job's walltime, if known.
    ends: Option<String>,
}

impl<'a> EngineView<'a> {
    pub(crate) fn new(engine: &'a EngineStatus) -> EngineView<'a> {
        let facts = &engine.facts;
        EngineView {
            id: engine.id,
            uuid: &facts.uuid.0,
            state: engine.state.as_str(),
            reason: engine.reason.as_deref(),
            native: facts.is_native(),
            host: &facts.host,
            pid: facts.pid,
            pcluster: &facts.version,
            python: &facts.python,
            assigned: engine.assigned,
            finished: engine.finished,
            registered: engine.registered.to_iso(),
            job: Some(facts.job.as_str()).filter(|job| !job.is_empty()),
            ends: facts.ends.map(|ends| ends.to_iso()),
        }
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    match args.action {
        None | Some(EnginesAction::List) => list(context),
        Some(EnginesAction::Add { n, how }) => add(n, *how, context),
        Some(EnginesAction::Remove { n, now }) => {
            let removed = context.block_on(cluster::remove_engines(
                &context.profile_dir()?,
                &context.cluster_id,
                EngineSelection::Count(n),
                !now,
            ))??;
            report_removed(&removed, context)
        }
        Some(EnginesAction::Stop { engines, now }) => stop(&engines, !now, context),
    }
}

fn list(context: &Context) -> Result<Exit, CommandError> {
    let client = context.client()?;
    let status = context.block_on(client.status())??;
    if context.json {
        let views: Vec<_> = status.engines.iter().map(EngineView::new).collect();
        json::print(&serde_json::json!({"engines": views, "nodes": nodes::nodes(&status.engines)}))?;
    } else if status.engines.is_empty() {
        context.note(format!(
            "{} has no engines; add some: pcluster engines{} add 4",
            context.describe_cluster(),
            context.options()
        ));
    } else {
        output::print(&table(&status.engines, times::now(), &context.terminal).render(&context.terminal))?;
        let nodes = nodes::nodes(&status.engines);
        if !nodes.is_empty() {
            output::print(&format!("\n{}", nodes::table(&nodes).render(&context.terminal)))?;
        }
        note_unavailable(&status.engines, context);
    }
    Ok(Exit::Fine)
}

/// Prints which engines cannot run Python, and why: one line per reason.
pub(crate) fn note_unavailable(engines: &[EngineStatus], context: &Context) {
    for line in unavailable_engines(engines) {
        context.note(line);
    }
}

fn table(engines: &[EngineStatus], now: UnixTime, terminal: &Terminal) -> Table {
    // On a narrow terminal, the interpreter needs the space.
    let roomy = !terminal.stdout || terminal.width >= 80;
    let mut table = Table::new().number("ENGINE").column("STATE").column("HOST");
    if roomy {
        table = table.number("PID");
    }
    table = table.number("ASSIGNED").number("FINISHED");
    if roomy {
        table = table.column("UP");
    }
    table = table.text("PYTHON");
    for engine in engines {
        let facts = &engine.facts;
        let tone = match engine.state {
            EngineState::Busy => Tone::Active,
            EngineState::Idle => Tone::Good,
            _ => Tone::Bad,
        };
        let known = |text: &str| Some(text.to_string()).filter(|t| !t.is_empty());
        let python = if facts.is_native() {
            known(&facts.python)
        } else {
            Some("(ipengine)".into())
        };
        let mut cells = vec![
            Cell::new(engine.id),
            Cell::new(&engine.state).tone(tone),
            Cell::or_dash(known(&facts.host)),
        ];
        if roomy {
            cells.push(Cell::or_dash(Some(facts.pid).filter(|pid| *pid > 0)));
        }
        cells.extend([Cell::new(engine.assigned), Cell::new(engine.finished)]);
        if roomy {
            cells.push(Cell::new(times::duration(now.since(engine.registered))));
        }
        cells.push(Cell::or_dash(python));
        table.row(cells);
    }
    table
}

/// The options of `engines add` and `scale`.
pub(crate) fn options(n: u32, mut how: EngineArgs, context: &Context) -> Result<AddOptions, CommandError> {
    let profile = context.profile_dir()?;
    if how.launcher.is_none() {
        // The same launcher as for the existing engines.
        let state = ClusterState::read(&profile, &context.cluster_id).ok().flatten();
        how.launcher = state.and_then(|state| Some(state.engines.last()?.launcher.clone()));
    }
    Ok(AddOptions {
        profile,
        cluster_id: context.cluster_id.clone(),
        n,
        settings: how.settings(context)?,
        launcher: how.launcher,
        wait: how.wait,
        timeout: how.timeout,
        engine_kind: how.engine.map(Into::into),
        python: how.python,
        cwd: None,
        log_level: how.log_level,
        program: None,
    })
}

fn add(n: u32, how: EngineArgs, context: &Context) -> Result<Exit, CommandError> {
    if n == 0 {
        return Err(CommandError::usage("the number of engines must be greater than 0"));
    }
    let options = options(n, how, context)?;
    let mut bar = StartProgressBar::new(context);
    let total = interruptible(context, cluster::add_engines(options, &mut |progress| bar.show(progress)))?;
    bar.clear();
    if context.json {
        json::print(&serde_json::json!({"added": n, "engines": total}))?;
    } else {
        context.note(format!("{} added, {total} in total", counted(u64::from(n), "engine")));
    }
    Ok(Exit::Fine)
}

fn stop(targets: &Targets, drain: bool, context: &Context) -> Result<Exit, CommandError> {
    let client = context.client()?;
    let status = context.block_on(client.status())??;
    let existing: Vec<EngineId> = status.engines.iter().map(|engine| engine.id).collect();
    let engines = match targets {
        Targets::All => existing,
        Targets::Some(ids) => {
            if let Some(missing) = ids.iter().find(|id| !existing.contains(id)) {
                let existing = if existing.is_empty() {
                    "none".to_string()
                } else {
                    Targets::Some(existing).to_string()
                };
                return Err(CommandError::not_found(format!("no engine {missing}")).hint(format!("the engines are: {existing}")));
            }
            ids.clone()
        }
    };
    let profile = context.profile_dir()?;
    let which = match targets {
        Targets::All => EngineSelection::All,
        Targets::Some(_) => EngineSelection::Ids(engines),
    };
    let removed = context.block_on(cluster::remove_engines(&profile, &context.cluster_id, which, drain))??;
    if context.json {
        json::print(&serde_json::json!({"stopping": removed.leaving, "cancelled": removed.cancelled}))?;
    } else if removed.leaving.is_empty() && removed.cancelled == 0 {
        context.note("no engines to stop");
    } else {
        let how = if drain { "; busy ones finish their task first" } else { "" };
        context.note(format!("{} stopping{how}", counted(removed.leaving.len() as u64, "engine")));
    }
    Ok(Exit::Fine)
}

/// `1 remains`, `3 remain`.
fn remaining(engines: usize) -> String {
    match engines {
        1 => "1 remains".into(),
        n => format!("{n} remain"),
    }
}

/// Reports which engines were removed.
pub(crate) fn report_removed(removed: &Removed, context: &Context) -> Result<Exit, CommandError> {
    if context.json {
        json::print(&serde_json::json!({
            "stopping": removed.leaving, "busy": removed.busy, "cancelled": removed.cancelled, "left": removed.left,
        }))?;
        return Ok(Exit::Fine);
    }
    let mut words = Vec::new();
    if removed.cancelled > 0 {
        words.push(format!("{} removed from the queue", counted(removed.cancelled as u64, "engine")));
    }
    if !removed.leaving.is_empty() {
        words.push(format!("{} leaving", counted(removed.leaving.len() as u64, "engine")));
    }
    if removed.busy > 0 {
        words.push(format!("{} of them after finishing a task", removed.busy));
    }
    if words.is_empty() {
        words.push("no engines to remove".into());
    }
    context.note(format!("{}; {}", words.join(", "), remaining(removed.left)));
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn engines_at_80_columns_and_piped() {
        let engines: Vec<EngineStatus> = serde_json::from_value(serde_json::json!([
            {"id": 0, "uuid": "a", "host": "node17.cluster", "pid": 4242, "version": "0.1.0", "python": "3.11.7 (/home/user/project/venv/bin/python)",
             "capabilities": ["call"], "state": "busy", "assigned": 2, "finished": 130000, "registered": 1000.0},
            {"id": 11, "uuid": "b", "state": "silent", "assigned": 0, "finished": 3, "registered": 4000.0},
        ]))
        .unwrap();
        let rendered = |terminal: Terminal| table(&engines, UnixTime(5000.0), &terminal).render(&terminal);
        let narrow = rendered(Terminal {
            stdout: true,
            width: 60,
            ..Terminal::NONE
        });
        assert!(
            narrow.lines().all(|line| line.chars().count() <= 60 && !line.contains("PID")),
            "{narrow}"
        );
        insta::assert_snapshot!(rendered(Terminal { stdout: true, ..Terminal::NONE }), @r"
        ENGINE  STATE   HOST             PID  ASSIGNED  FINISHED  UP           PYTHON
             0  busy    node17.cluster  4242         2    130000  1 h 6 min    3.11.7 (…
            11  silent  -                  -         0         3  16 min 40 s  (ipengin…
        ");
        insta::assert_snapshot!(rendered(Terminal::NONE), @r"
        ENGINE  STATE   HOST             PID  ASSIGNED  FINISHED  UP           PYTHON
             0  busy    node17.cluster  4242         2    130000  1 h 6 min    3.11.7 (/home/user/project/venv/bin/python)
            11  silent  -                  -         0         3  16 min 40 s  (ipengine)
        ");
    }
}
