//! `pcluster cancel`
use super::counted;
use crate::cli::ids::{self, Ids};
use crate::cli::output::json;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::client::{MapsRequest, Selection};

/// Stop tasks, waiting or running
///
/// Tasks that are finished stay as they are. A cancelled task ends as `aborted` and can be resubmitted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Maps (`1`), tasks (`1.3`) or ranges of them
    #[arg(required_unless_present = "all")]
    ids: Vec<Ids>,
    /// Everything that is not finished
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (mut maps, tasks) = ids::sort(&args.ids);
    let client = context.client()?;
    let records = Records::of(context, &client);
    records.must_exist(&maps)?;
    records.tasks_must_exist(&tasks)?;
    if args.all {
        let rows = context.block_on(client.maps(&MapsRequest::default()))??;
        // What ipyparallel's clients submitted is theirs to abort.
        maps = rows
            .iter()
            .filter(|row| row.completed.is_none() && row.kind != "client")
            .map(|row| row.map)
            .collect();
    }
    let (mut changed, mut unchanged) = (0, 0);
    // An empty selection must not be taken for everything.
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
        context.say(match args.all {
            true => "nothing to cancel: nothing is waiting or running",
            false => "nothing to cancel: these are finished",
        });
    } else {
        context.say(format!("{} cancelled", counted(changed, "task")));
    }
    Ok(Exit::Fine)
}
