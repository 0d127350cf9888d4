//! `pcluster status`
use super::engines::EngineView;
use crate::cli::nodes::{self, NodeView};
use crate::cli::output::counted;
use crate::cli::output::visible::visible;
use crate::cli::output::{self, json, times};
use crate::cli::{CommandError, Context, Exit};
use crate::client::StatusReply;
use crate::cluster::ClusterState;
use crate::cluster::allocator::record::{ElasticCluster, Journal};
use crate::model::UnixTime;
use crate::profile::ProfileDir;
use serde::Serialize;
use std::path::Path;

/// Show the state of a cluster: controller, engines, queue
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster status\n  pcluster status --profile gpu --json")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct StatusView<'a> {
    profile: &'a str,
    cluster_id: &'a str,
    directory: &'a Path,
    controller: ControllerView<'a>,
    engines: Vec<EngineView<'a>>,
    nodes: Vec<NodeView<'a>>,
    /// Unfinished maps.
    open_maps: u64,
    /// Tasks.
    queued: u64,
    running: u64,
    finished: u64,
    /// Clients and engines disconnected because they did not read.
    disconnected_peers: u64,
    /// Number of engines restarted in a new job, if restarts are enabled.
    replaced: Option<u32>,
    /// If the work decides how many engines there are: one line for each shape of engines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elastic: Vec<String>,
}

#[derive(Serialize)]
struct ControllerView<'a> {
    pid: u32,
    host: &'a str,
    pcluster: &'a str,
    started: String,
}

pub(crate) fn run(_args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    let client = context.client()?;
    let status = context.block_on(client.status())??;
    let state = ClusterState::read(&profile, &context.cluster_id).unwrap_or_else(|error| {
        context.note(format!("{error}; the controller is running"));
        None
    });
    let elastic = elastic_lines(state.as_ref().and_then(|state| state.elastic.as_ref()), &profile, context);
    let monitor = state.and_then(|state| state.walltime_monitor);
    if context.json {
        json::print(&StatusView {
            profile: profile.name(),
            cluster_id: &context.cluster_id,
            directory: profile.path(),
            controller: ControllerView {
                pid: status.pid,
                host: &status.host,
                pcluster: &status.version,
                started: status.started.to_iso(),
            },
            engines: status.engines.iter().map(EngineView::new).collect(),
            nodes: nodes::nodes(&status.engines),
            open_maps: status.open_maps,
            queued: status.queued,
            running: status.running,
            finished: status.finished,
            disconnected_peers: status.disconnected_peers,
            replaced: monitor.as_ref().map(|monitor| monitor.replaced),
            elastic,
        })?;
    } else {
        let mut text = text(&status, &context.describe_cluster(), profile.path(), times::now());
        for line in &elastic {
            text.push_str(&visible(&format!("{:<12}{line}\n", "elastic")));
        }
        output::print(&text)?;
        if let Some(monitor) = monitor.filter(|monitor| monitor.replaced > 0 || monitor.problem.is_some()) {
            let engines = counted(u64::from(monitor.replaced), "engine");
            context.note(format!("{engines} restarted in a new job; `pcluster list` shows the jobs"));
            monitor.problem.iter().for_each(|problem| context.note(problem));
        }
        super::engines::note_unavailable(&status.engines, context);
        status.notes.iter().for_each(|note| context.note(note));
        if let Some(text) = crate::db::noted_loss(&profile.database_file(&context.cluster_id), false) {
            context.note(text);
        }
        if status.engines.is_empty() && elastic.is_empty() {
            context.note(format!("no engines; add some: pcluster engines add 4{}", context.options()));
        }
    }
    Ok(Exit::Fine)
}

/// What the allocator has decided, one line for each shape of engines.
fn elastic_lines(cluster: Option<&ElasticCluster>, profile: &ProfileDir, context: &Context) -> Vec<String> {
    let Some(cluster) = cluster else { return Vec::new() };
    match Journal::read(profile, &context.cluster_id, &cluster.seed) {
        Ok(journal) => super::elastic::lines(cluster, &journal),
        Err(error) => {
            context.note(error);
            Vec::new()
        }
    }
}

fn text(status: &StatusReply, cluster: &str, directory: &Path, now: UnixTime) -> String {
    let mut states: Vec<(&str, usize)> = Vec::new();
    for engine in &status.engines {
        match states.iter_mut().find(|(word, _)| *word == engine.state.as_str()) {
            Some((_, count)) => *count += 1,
            None => states.push((engine.state.as_str(), 1)),
        }
    }
    states.sort_unstable();
    let states: Vec<_> = states.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let engines = match status.engines.len() {
        0 => "none".to_string(),
        n => format!("{n} ({})", states.join(", ")),
    };
    let lines = [
        ("cluster", format!("{cluster}, in {}", directory.display())),
        (
            "controller",
            format!(
                "pcluster {}, process {} on {}, up {}",
                status.version,
                status.pid,
                status.host,
                times::duration(now.since(status.started))
            ),
        ),
        ("engines", engines),
        ("nodes", nodes::summary(&nodes::nodes(&status.engines))),
        ("maps", format!("{} not finished", status.open_maps)),
        (
            "tasks",
            format!("{} queued, {} running, {} finished", status.queued, status.running, status.finished),
        ),
    ];
    let lines = lines.iter().filter(|(_, value)| !value.is_empty());
    let mut text: String = lines.map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    text = visible(&text).into_owned();
    if status.disconnected_peers > 0 {
        let peers = counted(status.disconnected_peers, "peer");
        text.push_str(&format!("{:<12}{peers} that did not read (see pcluster logs)\n", "dropped"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_described_in_five_lines() {
        let status: StatusReply = serde_json::from_value(serde_json::json!({
            "status": "ok", "version": "0.1.0", "pid": 17, "host": "n1", "cluster_id": "", "started": 1000.0,
            "engines": [
                {"id": 0, "uuid": "a", "state": "busy", "assigned": 2, "finished": 3, "registered": 1.0},
                {"id": 1, "uuid": "b", "state": "idle", "assigned": 0, "finished": 3, "registered": 1.0},
                {"id": 2, "uuid": "c", "state": "idle", "assigned": 0, "finished": 3, "registered": 1.0},
            ],
            "open_maps": 1, "queued": 10, "running": 2, "finished": 9,
        }))
        .unwrap();
        let dropped = StatusReply {
            disconnected_peers: 2,
            ..status.clone()
        };
        let text_of = |status| text(status, "x", Path::new("/"), UnixTime(1075.0));
        let last = text_of(&dropped).lines().last().unwrap().to_string();
        assert_eq!(last, "dropped     2 peers that did not read (see pcluster logs)");
        insta::assert_snapshot!(text(&status, "profile `default`", Path::new("/home/u/.ipython/profile_default"), UnixTime(1075.0)), @r"
        cluster     profile `default`, in /home/u/.ipython/profile_default
        controller  pcluster 0.1.0, process 17 on n1, up 1 min 15 s
        engines     3 (1 busy, 2 idle)
        maps        1 not finished
        tasks       10 queued, 2 running, 9 finished
        ");
    }
}
