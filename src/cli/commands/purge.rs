//! `pcluster purge`
use crate::cli::ids::{self, Ids};
use crate::cli::output::counted;
use crate::cli::output::{self, json};
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::db::{Durability, Writer};
use crate::model::MapId;
use crate::model::change::{Change, Purge};
use crate::model::query::MapQuery;
use crate::model::task::MapRow;
use std::io::{IsTerminal, Write};

/// Delete finished maps and their results
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster purge 1-3\n  pcluster purge --all --yes")]
pub(crate) struct Args {
    /// Delete these maps (`1`) or ranges (`1-3`)
    #[arg(required_unless_present = "all")]
    maps: Vec<Ids>,
    /// Delete all finished maps
    #[arg(long, conflicts_with = "maps")]
    all: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let maps = ids::maps_only(&args.maps, "purge")?;
    let records = Records::open(context)?;
    records.must_exist(&maps)?;
    let mut rows = records.maps(&MapQuery {
        maps,
        ..MapQuery::default()
    })?;
    if args.all {
        rows.retain(|row| row.completed.is_some());
    } else if let Some(open) = rows.iter().find(|row| row.completed.is_none()) {
        return Err(CommandError::usage(format!("map {} is not finished", open.map)).hint(format!(
            "wait for it (pcluster wait {0}) or cancel it (pcluster cancel {0}) first",
            open.map
        )));
    }
    if !rows.is_empty() && !args.yes && !confirm(&rows)? {
        context.note("nothing was purged");
        return Ok(Exit::Fine);
    }
    let purged: Vec<MapId> = rows.iter().map(|row| row.map).collect();
    if !purged.is_empty() {
        delete(&purged, records, context)?;
    }
    if context.json {
        json::print(&serde_json::json!({"purged": purged}))?;
    } else {
        context.note(match purged.is_empty() {
            true => "nothing to purge: no map has finished".to_string(),
            false => format!("{} purged", counted(purged.len() as u64, "map")),
        });
    }
    Ok(Exit::Fine)
}

fn delete(maps: &[MapId], records: Records, context: &Context) -> Result<(), CommandError> {
    match records {
        Records::Running { client, .. } => context.block_on(client.purge(maps.to_vec()))??,
        Records::Stopped(reader) => {
            drop(reader);
            let path = context.profile_dir()?.database_file(&context.cluster_id);
            let changes: Vec<_> = maps.iter().map(|map| Change::Purged { what: Purge::Map(*map) }).collect();
            let mut writer = Writer::open(&path, Durability::Full)?;
            writer.apply(&changes)?;
            writer.compact()?;
            writer.close()?;
        }
    }
    Ok(())
}

fn confirm(rows: &[MapRow]) -> Result<bool, CommandError> {
    let tasks = rows.iter().map(|row| row.counts.total).sum();
    let what = format!("{} with {}", counted(rows.len() as u64, "map"), counted(tasks, "task"));
    if !std::io::stdin().is_terminal() {
        return Err(
            CommandError::usage(format!("{what} would be deleted permanently, and stdin is not a terminal")).hint("pass --yes to confirm"),
        );
    }
    output::stderr_text(&format!("Delete {what} permanently? [y/N] "));
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| CommandError::environment(format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
