//! `pcluster resubmit`
use crate::cli::ids::{self, Ids};
use crate::cli::inputs::code::bundle_now;
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::client::{Client, Selection, SelectionReply};
use crate::model::definition::{BundleRef, MapDefinition};
use crate::model::{MapId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};

/// Maximum number of changed files listed.
const SHOWN: usize = 5;

/// Run finished tasks again
///
/// `resubmit 1.3` runs one task again, `resubmit 1 --failed` the failed tasks of map 1, `resubmit 1` all its finished tasks. A task
/// keeps its id; earlier attempts remain on record (`pcluster results 1.3`). If files of the map's code have changed since, they
/// are listed; --code current runs the changed files. Each attempt records which code it ran.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster resubmit 1 --failed\n  pcluster resubmit 1.3 1.5\n  pcluster resubmit 2 --code current")]
pub(crate) struct Args {
    /// Resubmit these maps (`1`), tasks (`1.3`) or ranges
    #[arg(required = true)]
    ids: Vec<Ids>,
    /// Resubmit only failed tasks of the maps
    #[arg(long)]
    failed: bool,
    /// If files have changed: run the current ones, or those last submitted [default: ask at a terminal, else submitted]
    #[arg(long, value_name = "WHICH")]
    code: Option<CodeVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CodeVersion {
    Current,
    Submitted,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (maps, tasks) = ids::sort(&args.ids);
    let client = context.client()?;
    let records = Records::of(context, &client);
    records.must_exist(&maps)?;
    records.tasks_must_exist(&tasks)?;
    let mut selection = Selection {
        maps,
        tasks,
        failed_only: args.failed,
    };
    let changed: Vec<Replacement> = of_maps(&selection)
        .into_iter()
        .map(|map| current_code(&client, context, args.code, map))
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    let mut reply = SelectionReply {
        status: String::new(),
        changed: 0,
        unchanged: 0,
        maps: Vec::new(),
    };
    let mut add = |more: SelectionReply| {
        reply.changed += more.changed;
        reply.unchanged += more.unchanged;
        reply.maps.extend(more.maps);
    };
    for Replacement { map, definition } in changed {
        let of_map = take_map(&mut selection, map);
        add(context.block_on(client.resubmit_with(of_map, definition))??);
    }
    if !of_maps(&selection).is_empty() {
        add(context.block_on(client.resubmit(selection))??);
    }
    if context.json {
        json::print(&serde_json::json!({"resubmitted": reply.changed, "unchanged": reply.unchanged, "maps": reply.maps}))?;
        return Ok(Exit::Fine);
    }
    match (reply.changed, reply.unchanged) {
        (0, 0) => context.note("nothing to resubmit: no such task failed"),
        (0, left) => context.note(format!("nothing to resubmit: {} not finished yet", counted(left, "task"))),
        (changed, 0) => context.note(format!("{} resubmitted", counted(changed, "task"))),
        (changed, left) => context.note(format!("{} resubmitted, {left} left unchanged", counted(changed, "task"))),
    }
    if reply.changed > 0 {
        let maps: Vec<_> = reply.maps.iter().map(|map| map.to_string()).collect();
        context.note(format!("wait for them:  pcluster wait{} {}", context.options(), maps.join(" ")));
    }
    Ok(Exit::Fine)
}

/// The definition that a map's tasks run instead.
struct Replacement {
    map: MapId,
    definition: MapDefinition,
}

fn of_maps(selection: &Selection) -> BTreeSet<MapId> {
    selection
        .maps
        .iter()
        .copied()
        .chain(selection.tasks.iter().map(|task| task.map))
        .collect()
}

/// Removes one map's part from the selection.
fn take_map(selection: &mut Selection, map: MapId) -> Selection {
    let (maps, others) = std::mem::take(&mut selection.maps).into_iter().partition(|other| *other == map);
    let (tasks, rest): (Vec<TaskId>, Vec<TaskId>) = std::mem::take(&mut selection.tasks).into_iter().partition(|task| task.map == map);
    (selection.maps, selection.tasks) = (others, rest);
    Selection {
        maps,
        tasks,
        failed_only: selection.failed_only,
    }
}

/// The definition with the current files, if they have changed and are to be used.
fn current_code(client: &Client, context: &Context, which: Option<CodeVersion>, map: MapId) -> Result<Option<Replacement>, CommandError> {
    let details = context.block_on(client.code(map))??;
    let Some(mut definition) = details.definition else {
        return Ok(None);
    };
    let directory = definition.options.directory.clone();
    // The code of a reduction belongs to its map; and old records do not hold the origin of files.
    let named = match definition.work.bundle_mut() {
        Some(named) if !named.origin.is_empty() && definition.options.reduces.is_none() => named,
        _ => return Ok(None),
    };
    let now = match bundle_now(named, directory.as_deref()) {
        Ok(now) if now.hash == named.hash => return Ok(None),
        Ok(now) => now,
        Err(error) if which == Some(CodeVersion::Current) => return Err(error),
        Err(error) => {
            context.note(format!(
                "cannot read the code of map {map} ({}); running it as last submitted",
                error.error
            ));
            return Ok(None);
        }
    };
    context.note(format!(
        "the code of map {map} has changed since it was last submitted: {}",
        differences(named, &details.files, &now)
    ));
    let current = match which {
        Some(which) => which == CodeVersion::Current,
        None if std::io::stdin().is_terminal() && context.terminal.stderr => ask("run the current code? [y/N] ")?,
        None => false,
    };
    if !current {
        context.note("running it as last submitted; --code current runs the current files");
        return Ok(None);
    }
    *named = now;
    Ok(Some(Replacement { map, definition }))
}

/// A list of the files that differ.
fn differences(named: &BundleRef, before: &BTreeMap<String, String>, now: &BundleRef) -> String {
    let hashes = now.content.as_ref().and_then(|bundle| bundle.hashes().ok()).unwrap_or_default();
    let paths: BTreeSet<&String> = before.keys().chain(hashes.keys()).collect();
    let changed: Vec<String> = paths
        .into_iter()
        .filter_map(|path| match (before.get(path), hashes.get(path)) {
            (Some(old), Some(new)) if old == new => None,
            (Some(_), Some(_)) => Some(now.original(path)),
            (Some(_), None) => Some(format!("{} (removed)", named.original(path))),
            (None, _) => Some(format!("{} (new)", now.original(path))),
        })
        .collect();
    match changed.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", changed[..SHOWN].join(", ")),
        _ => changed.join(", "),
    }
}

fn ask(question: &str) -> Result<bool, CommandError> {
    let failed = |error: std::io::Error| CommandError::environment(format!("cannot read the answer: {error}"));
    let mut stderr = std::io::stderr();
    stderr
        .write_all(question.as_bytes())
        .and_then(|()| stderr.flush())
        .map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
