//! `pcluster cancel`
use crate::cli::ids::{self, Ids};
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::client::{MapsRequest, Selection};

/// Cancel waiting and running tasks
///
/// Leaves finished tasks unchanged. A cancelled task ends as `aborted` and can be resubmitted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster cancel 1\n  pcluster cancel 1.3 1.5-9\n  pcluster cancel --all")]
pub(crate) struct Args {
    /// Cancel these maps (`1`), tasks (`1.3`) or ranges
    #[arg(required_unless_present = "all")]
    ids: Vec<Ids>,
    /// Cancel everything that is unfinished
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (mut maps, tasks) = ids::sort(&args.ids);
    let client = context.client()?;
    let records = Records::of(context, &client);
    records.must_exist(&maps)?;
    records.tasks_must_exist(&tasks)?;
    if args.all {
        let rows = context.block_on(client.maps(&MapsRequest::default()))??;
        // Requests of ipyparallel's clients are aborted by those clients.
        maps = rows
            .iter()
            .filter(|row| row.completed.is_none() && row.kind != "client")
            .map(|row| row.map)
            .collect();
    }
    let (mut changed, mut unchanged) = (0, 0);
    // An empty selection must not select everything.
    if !(maps.is_empty() && tasks.is_empty()) {
        let selection = Selection {
            maps,
            tasks,
            failed_only: false,
        };
        let reply = context.block_on(client.cancel(selection))??;
        (changed, unchanged) = (reply.changed, reply.unchanged);
    }
    if context.json {
        json::print(&serde_json::json!({"cancelled": changed, "unchanged": unchanged}))?;
    } else if changed == 0 {
        context.note(match args.all {
            true => "nothing to cancel: no tasks are waiting or running",
            false => "nothing to cancel: the tasks have finished",
        });
    } else {
        context.note(format!("{} cancelled", counted(changed, "task")));
    }
    Ok(Exit::Fine)
}
