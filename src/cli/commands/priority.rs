//! `pcluster priority`
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::model::MapId;

/// Change the priority of a map
///
/// Tasks of maps with a higher priority are sent to engines first; maps of equal priority share the engines. Tasks
/// that engines have already are not affected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster priority 12 5\n  pcluster priority 12 -1")]
pub(crate) struct Args {
    /// Change this map
    map: MapId,
    /// The new priority; maps have 0 unless submitted with --priority
    #[arg(value_name = "N", allow_negative_numbers = true)]
    priority: i32,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let client = context.client()?;
    Records::of(context, &client).must_exist(&[args.map])?;
    context.block_on(client.set_priority(args.map, args.priority))??;
    context.note(format!("map {} has priority {}", args.map, args.priority));
    Ok(Exit::Fine)
}
