//! `pcluster resubmit`
use super::counted;
use crate::cli::ids::{self, Ids};
use crate::cli::output::json;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::client::Selection;

/// Run finished tasks again, in place
///
/// `resubmit 1.3` runs one task again, `resubmit 1 --failed` those of map 1 that failed, `resubmit 1` all of its finished
/// tasks. A task keeps its id; what its earlier attempts were is kept too (`pcluster results 1.3`).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Maps (`1`), tasks (`1.3`) or ranges of them
    #[arg(required = true)]
    ids: Vec<Ids>,
    /// Of the maps, only the tasks that ended other than well
    #[arg(long)]
    failed: bool,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (maps, tasks) = ids::sort(&args.ids);
    let client = context.client()?;
    let records = Records::of(context, &client);
    records.must_exist(&maps)?;
    records.tasks_must_exist(&tasks)?;
    let selection = Selection {
        maps,
        tasks,
        failed_only: args.failed,
    };
    let reply = context.block_on(client.resubmit(selection))??;
    if context.json {
        json::print(&serde_json::json!({"resubmitted": reply.changed, "unchanged": reply.unchanged, "maps": reply.maps}))?;
        return Ok(Exit::Fine);
    }
    match (reply.changed, reply.unchanged) {
        (0, 0) => context.say("nothing to resubmit: no such task failed"),
        (0, left) => context.say(format!("nothing to resubmit: {} not finished yet", counted(left, "task"))),
        (changed, 0) => context.say(format!("{} resubmitted", counted(changed, "task"))),
        (changed, left) => context.say(format!("{} resubmitted, {left} left as they were", counted(changed, "task"))),
    }
    if reply.changed > 0 {
        let maps: Vec<_> = reply.maps.iter().map(|map| map.to_string()).collect();
        context.say(format!("wait for them: pcluster wait{} {}", context.options(), maps.join(" ")));
    }
    Ok(Exit::Fine)
}
