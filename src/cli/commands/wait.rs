//! `pcluster wait`
use crate::cli::explained::{self, Jobs, WITHOUT_PROGRESS};
use crate::cli::ids::{self, Ids};
use crate::cli::output::counted;
use crate::cli::output::{json, times};
use crate::cli::views::MapView;
use crate::cli::{CommandError, Context, Exit, records};
use crate::client::{Client, ClientError, ExplainRequest, MapsRequest};
use crate::model::MapId;
use crate::model::query::parse_duration;
use crate::model::task::Counts;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Wait until maps have finished
///
/// Exits with 1 if any task failed or the timeout expired. Reports why, while no task ends for 10 seconds.
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
    let (explain, mut explanations) = mpsc::channel(8);
    let jobs = Jobs::of(context);
    for map in maps {
        let (client, jobs, explain) = (client.clone(), jobs.clone(), explain.clone());
        watches.spawn(async move { watch(&client, map, &jobs, &explain).await.map(|counts| (map, counts)) });
    }
    drop(explain);
    let mut exit = Exit::Fine;
    loop {
        let ended = tokio::select! {
            Some(text) = explanations.recv() => {
                context.note(text);
                continue;
            }
            ended = watches.join_next() => ended,
        };
        let Some(ended) = ended else { break };
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

/// Waits for a map. While nothing of it ends, sends why: once, and again when the reasons change.
async fn watch(client: &Client, map: MapId, jobs: &Jobs, explain: &mpsc::Sender<String>) -> Result<Counts, ClientError> {
    let mut watch = client.watch(map, WITHOUT_PROGRESS).counts_only();
    let (mut counts, mut since, mut explained) = (Counts::default(), Instant::now(), None);
    while let Some(update) = watch.next().await? {
        if update.counts.done() != counts.done() {
            since = Instant::now();
        }
        counts = update.counts;
        if since.elapsed() < WITHOUT_PROGRESS || update.complete {
            continue;
        }
        let line = explained::one_line(client, ExplainRequest::Map(map), jobs, times::now()).await;
        if let Some(line) = line.filter(|line| explained.as_ref() != Some(&line.kinds)) {
            // The receiver ends with the command.
            let _ = explain.send(format!("map {map}: {}", line.text)).await;
            explained = Some(line.kinds);
        }
    }
    Ok(counts)
}
