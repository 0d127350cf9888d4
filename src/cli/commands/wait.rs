//! `pcluster wait`
use crate::cli::ids::{self, Ids};
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::views::MapView;
use crate::cli::{CommandError, Context, Exit, records};
use crate::client::MapsRequest;
use crate::client::{Client, ClientError};
use crate::model::MapId;
use crate::model::query::parse_duration;
use crate::model::task::Counts;
use std::time::Duration;
use tokio::task::JoinSet;

/// Wait until maps have finished
///
/// Exits with 1 if any task failed or the timeout expired.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster wait 1\n  pcluster wait --any --timeout 10m")]
pub(crate) struct Args {
    /// Wait for these maps [default: all unfinished maps]
    maps: Vec<Ids>,
    /// Time out after DURATION (`90s`, `10m`, `2h`)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// Return when any of them has finished
    #[arg(long)]
    any: bool,
}

/// `90`, `90s`, `10m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| format!("{text:?} is not a time (90s, 10m, 2h, 1d)"))
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let mut maps = ids::maps_only(&args.maps, "wait")?;
    let client = context.client()?;
    let rows = context.block_on(client.maps(&MapsRequest {
        maps: maps.clone(),
        ..MapsRequest::default()
    }))??;
    if maps.is_empty() {
        maps = rows
            .iter()
            .filter(|row| row.completed.is_none() && row.kind != "client")
            .map(|row| row.map)
            .collect();
        if maps.is_empty() {
            context.note("nothing to wait for: every map has finished");
        }
    } else if let Some(missing) = maps.iter().find(|map| !rows.iter().any(|row| row.map == **map)) {
        return Err(records::no_such_map(*missing));
    }
    let all = until_done(&client, maps.clone(), args.any, context);
    let finished = context.block_on(async {
        match args.timeout {
            Some(timeout) => tokio::time::timeout(timeout, all).await.ok(),
            None => Some(all.await),
        }
    })?;
    let exit = match finished {
        Some(result) => result?,
        None => {
            return Err(
                CommandError::failed(format!("timed out after {} s", args.timeout.unwrap_or_default().as_secs_f64())).hint(format!(
                    "the maps continue; see pcluster results{}, or run pcluster wait{} again",
                    context.options(),
                    context.options()
                )),
            );
        }
    };
    if context.json {
        let rows = context.block_on(client.maps(&MapsRequest {
            maps: maps.clone(),
            ..MapsRequest::default()
        }))??;
        let views: Vec<_> = rows.iter().filter(|row| maps.contains(&row.map)).map(MapView::new).collect();
        json::print(&serde_json::json!({"maps": views}))?;
    }
    Ok(exit)
}

async fn until_done(client: &Client, maps: Vec<MapId>, any: bool, context: &Context) -> Result<Exit, CommandError> {
    let mut watches = JoinSet::new();
    for map in maps {
        let client = client.clone();
        watches.spawn(async move { watch(&client, map).await.map(|counts| (map, counts)) });
    }
    let mut exit = Exit::Fine;
    while let Some(ended) = watches.join_next().await {
        let (map, counts) = ended.map_err(|e| CommandError::internal(format!("watching a map: {e}")))??;
        if counts.failed() > 0 {
            exit = Exit::SomeFailed;
            context.note(format!(
                "map {map}: {} of {} failed; see them: pcluster results{} {map} --failed",
                counts.failed(),
                counted(counts.total, "task"),
                context.options()
            ));
        } else {
            context.note(format!("map {map}: {} ok", counted(counts.total, "task")));
        }
        if any {
            break;
        }
    }
    Ok(exit)
}

async fn watch(client: &Client, map: MapId) -> Result<Counts, ClientError> {
    let mut watch = client.watch(map, Duration::from_secs(10)).counts_only();
    let mut counts = Counts::default();
    while let Some(update) = watch.next().await? {
        counts = update.counts;
    }
    Ok(counts)
}
