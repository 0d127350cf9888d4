//! `pcluster resubmit`
use super::counted;
use crate::cli::ids::{self, Ids};
use crate::cli::inputs::code::bundle_now;
use crate::cli::output::json;
use crate::cli::records::Records;
use crate::cli::{CommandError, Context, Exit};
use crate::client::{Client, Selection, SelectionReply};
use crate::model::definition::{BundleRef, MapDefinition};
use crate::model::{MapId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};

/// Names of changed files that are shown.
const SHOWN: usize = 5;

/// Run finished tasks again, in place
///
/// `resubmit 1.3` runs one task again, `resubmit 1 --failed` those of map 1 that failed, `resubmit 1` all of its finished
/// tasks. A task keeps its id; what its earlier attempts were is kept too (`pcluster results 1.3`). Files of the map's code that have changed
/// since are named; with --code current the tasks run these, and the record keeps which code each attempt ran.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Maps (`1`), tasks (`1.3`) or ranges of them
    #[arg(required = true)]
    ids: Vec<Ids>,
    /// Of the maps, only the tasks that ended other than well
    #[arg(long)]
    failed: bool,
    /// Where files have changed since: run the current ones, or those that were submitted [default: ask at a terminal, else submitted]
    #[arg(long, value_name = "WHICH")]
    code: Option<Which>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    Current,
    Submitted,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
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

/// What a map's tasks are to run instead.
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

/// Takes what is of one map.
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

/// The definition with the files as they are now, where they have changed and these are wanted.
fn current_code(client: &Client, context: &Context, which: Option<Which>, map: MapId) -> Result<Option<Replacement>, CommandError> {
    let details = context.block_on(client.code(map))??;
    let Some(mut definition) = details.definition else {
        return Ok(None);
    };
    let directory = definition.options.directory.clone();
    // The one with which values are folded goes with them; and of old versions it is not known where a file was.
    let named = match definition.work.bundle_mut() {
        Some(named) if !named.origin.is_empty() && definition.options.reduces.is_none() => named,
        _ => return Ok(None),
    };
    let now = match bundle_now(named, directory.as_deref()) {
        Ok(now) if now.hash == named.hash => return Ok(None),
        Ok(now) => now,
        Err(error) if which == Some(Which::Current) => return Err(error),
        Err(error) => {
            context.say(format!(
                "the code of map {map} cannot be read any more ({}); it runs as it was submitted",
                error.error
            ));
            return Ok(None);
        }
    };
    context.say(format!(
        "the code of map {map} has changed since it was submitted: {}",
        differences(named, &details.files, &now)
    ));
    let current = match which {
        Some(which) => which == Which::Current,
        None if std::io::stdin().is_terminal() && context.terminal.stderr => asked("run the current code? [y/N] ")?,
        None => false,
    };
    if !current {
        context.say("it runs as it was submitted; --code current runs the current files");
        return Ok(None);
    }
    *named = now;
    Ok(Some(Replacement { map, definition }))
}

/// Some of the files that are not the same.
fn differences(named: &BundleRef, before: &BTreeMap<String, String>, now: &BundleRef) -> String {
    let hashes = now.content.as_ref().and_then(|bundle| bundle.hashes().ok()).unwrap_or_default();
    let paths: BTreeSet<&String> = before.keys().chain(hashes.keys()).collect();
    let changed: Vec<String> = paths
        .into_iter()
        .filter_map(|path| match (before.get(path), hashes.get(path)) {
            (Some(old), Some(new)) if old == new => None,
            (Some(_), Some(_)) => Some(now.original(path)),
            (Some(_), None) => Some(format!("{} (not sent now)", named.original(path))),
            (None, _) => Some(format!("{} (new)", now.original(path))),
        })
        .collect();
    match changed.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", changed[..SHOWN].join(", ")),
        _ => changed.join(", "),
    }
}

fn asked(question: &str) -> Result<bool, CommandError> {
    let failed = |error: std::io::Error| CommandError::environment(format!("cannot ask at the terminal: {error}"));
    let mut stderr = std::io::stderr();
    stderr
        .write_all(question.as_bytes())
        .and_then(|()| stderr.flush())
        .map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
