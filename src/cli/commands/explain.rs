//! `pcluster explain`: why a task, map, engine or batch job is in its state.
mod attempts;
mod engine;
mod job;
mod map;
mod shared;
mod task;

use crate::cli::{CommandError, Context, Exit};
use crate::model::{EngineId, MapId, TaskId};
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
    /// Explain this map (`1`) or task (`1.3`), or the number of engines (`elastic`)
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
    Elastic,
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Subject, String> {
        if text == "elastic" {
            return Ok(Subject::Elastic);
        }
        let task = text.parse().map(Subject::Task);
        task.or_else(|_| text.parse().map(Subject::Map))
            .map_err(|_| format!("{text:?} is neither a map (12) nor a task (12.3) nor `elastic`"))
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
        (Some(Subject::Elastic), ..) => super::elastic::explain(context),
        (Some(Subject::Map(map)), ..) => map::explain(map, context),
        (_, Some(engine), _) => engine::explain(engine, context),
        (.., Some(job)) => job::explain(&job, context),
        _ => Err(CommandError::usage("name a map, a task, an engine or a job")),
    }?;
    Ok(Exit::Fine)
}
