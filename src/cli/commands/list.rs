//! `pcluster list`
use crate::cli::context::Terminal;
use crate::cli::output::table::{Cell, Table, Tone};
use crate::cli::output::{self, json, times};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::remote::{Phase, TunnelState};
use crate::cluster::{ClusterSummary, Condition};
use crate::model::UnixTime;
use serde::Serialize;

/// List all clusters of all profiles
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those that run
    #[arg(long)]
    running: bool,
}

#[derive(Serialize)]
struct View<'a> {
    profile: &'a str,
    cluster_id: &'a str,
    state: Condition,
    directory: &'a std::path::Path,
    controller_pid: Option<u32>,
    controller_host: Option<&'a str>,
    engines_started: usize,
    /// Null where that cannot be told from here.
    engines_alive: Option<usize>,
    engine_kind: Option<&'a str>,
    launcher: Option<&'a str>,
    started: Option<String>,
    database: Option<&'a std::path::Path>,
    trouble: Option<&'a str>,
    /// Where it is connected to another host.
    tunnel: Option<TunnelView<'a>>,
}

#[derive(Serialize)]
pub struct TunnelView<'a> {
    destination: &'a str,
    /// `up`, `down`, `waiting`, `connecting`, `failed`.
    phase: Phase,
    since: String,
    problem: Option<&'a str>,
    pid: Option<u32>,
    reconnects: u64,
    remote_profile: Option<&'a str>,
    remote_cluster_id: Option<&'a str>,
    ports: &'a std::collections::BTreeMap<String, u16>,
}

impl<'a> TunnelView<'a> {
    pub fn new(tunnel: &'a TunnelState) -> TunnelView<'a> {
        TunnelView {
            destination: &tunnel.destination,
            phase: tunnel.phase,
            since: UnixTime(tunnel.since).to_iso(),
            problem: tunnel.problem.as_deref(),
            pid: tunnel.tunnel.map(|own| own.pid),
            reconnects: tunnel.reconnects,
            remote_profile: tunnel.leads_to.as_ref().map(|l| l.profile.as_str()),
            remote_cluster_id: tunnel.leads_to.as_ref().map(|l| l.cluster_id.as_str()),
            ports: &tunnel.ports,
        }
    }
}

impl<'a> View<'a> {
    fn new(cluster: &'a ClusterSummary) -> View<'a> {
        View {
            profile: &cluster.profile,
            cluster_id: &cluster.cluster_id,
            state: cluster.state,
            directory: &cluster.directory,
            controller_pid: cluster.controller.as_ref().map(|c| c.pid),
            controller_host: cluster.controller.as_ref().map(|c| c.host.as_str()),
            engines_started: cluster.engines_started,
            engines_alive: cluster.engines_alive,
            engine_kind: cluster.engine_kind.as_deref(),
            launcher: cluster.launcher.as_deref(),
            started: cluster.started.map(|s| UnixTime(s).to_iso()),
            database: cluster.database.as_deref(),
            trouble: cluster.trouble.as_deref(),
            tunnel: cluster.tunnel.as_ref().map(TunnelView::new),
        }
    }
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let mut clusters = context.clusters()?;
    if args.running {
        clusters.retain(|c| matches!(c.state, Condition::Running | Condition::Connected));
    }
    if context.json {
        let views: Vec<_> = clusters.iter().map(View::new).collect();
        json::print(&serde_json::json!({"clusters": views}))?;
        return Ok(Exit::Fine);
    }
    if clusters.is_empty() {
        context.say("no clusters; `pcluster start -n 4` starts one");
        return Ok(Exit::Fine);
    }
    output::print(&table(&clusters, times::now(), &context.terminal))?;
    for cluster in clusters.iter().filter(|c| c.trouble.is_some()) {
        context.say(format!(
            "profile `{}`: {}",
            cluster.profile,
            cluster.trouble.as_deref().unwrap_or_default()
        ));
    }
    for cluster in clusters.iter().filter(|c| c.state == Condition::Connected) {
        let Some(tunnel) = &cluster.tunnel else { continue };
        context.say(format!("profile `{}`: {}", cluster.profile, tunnel.in_words()));
    }
    if clusters.iter().any(|c| c.state == Condition::Stale) {
        context.say("`pcluster clean` clears away what the stale ones left; `pcluster start` brings one back");
    }
    Ok(Exit::Fine)
}

fn table(clusters: &[ClusterSummary], now: UnixTime, terminal: &Terminal) -> String {
    let mut table = Table::new()
        .text("PROFILE")
        .column("CLUSTER ID")
        .column("STATE")
        .column("ENGINES")
        .number("PID")
        .column("HOST")
        .column("SINCE");
    for cluster in clusters {
        let tone = match cluster.state {
            Condition::Running => Tone::Good,
            Condition::Connected if cluster.tunnel.as_ref().is_some_and(|t| t.phase != Phase::Up) => Tone::Bad,
            Condition::Connected => Tone::Good,
            Condition::Stale => Tone::Bad,
            Condition::Stopped => Tone::Faint,
            Condition::Elsewhere | Condition::Foreign => Tone::Active,
        };
        let engines = match (cluster.engines_alive, cluster.engines_started) {
            (_, 0) => None,
            (Some(alive), started) if alive == started => Some(alive.to_string()),
            (Some(alive), started) => Some(format!("{alive} of {started}")),
            (None, started) => Some(format!("? of {started}")),
        };
        let since = cluster.started.filter(|_| cluster.state != Condition::Stopped).map(UnixTime);
        let said = |t: UnixTime| if terminal.stdout { times::ago(now, t) } else { t.to_iso() };
        let controller = cluster.controller.as_ref().filter(|_| cluster.state != Condition::Stopped);
        table.row(vec![
            Cell::new(&cluster.profile),
            Cell::or_dash(Some(&cluster.cluster_id).filter(|id| !id.is_empty())),
            Cell::new(cluster.state).tone(tone),
            Cell::or_dash(engines),
            Cell::or_dash(controller.map(|c| c.pid)),
            Cell::or_dash(controller.map(|c| &c.host)),
            Cell::or_dash(since.map(said)),
        ]);
    }
    table.render(terminal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::list::ControllerProcess;

    #[test]
    fn clusters_at_80_columns() {
        let cluster = |profile: &str, id: &str, state, alive, started: usize| ClusterSummary {
            profile: profile.into(),
            directory: format!("/home/u/.ipython/profile_{profile}").into(),
            cluster_id: id.into(),
            state,
            controller: Some(ControllerProcess {
                pid: 4242,
                host: "login1".into(),
                started: 1000.0,
            }),
            engines_started: started,
            engines_alive: alive,
            engine_kind: Some("pcluster".into()),
            launcher: Some("local".into()),
            started: Some(1000.0),
            database: None,
            trouble: None,
            tunnel: None,
        };
        let clusters = [
            cluster("default", "", Condition::Running, Some(4), 4),
            cluster("default", "night", Condition::Stale, Some(1), 4),
            cluster("mine", "", Condition::Stopped, Some(0), 0),
            cluster("mine", "far", Condition::Elsewhere, None, 16),
        ];
        insta::assert_snapshot!(table(&clusters, UnixTime(9000.0), &Terminal { stdout: true, ..Terminal::NONE }), @r"
        PROFILE  CLUSTER ID  STATE      ENGINES   PID  HOST    SINCE
        default  -           running    4        4242  login1  2 h ago
        default  night       stale      1 of 4   4242  login1  2 h ago
        mine     -           stopped    -           -  -       -
        mine     far         elsewhere  ? of 16  4242  login1  2 h ago
        ");
        insta::assert_snapshot!(table(&clusters, UnixTime(9000.0), &Terminal::NONE), @r"
        PROFILE  CLUSTER ID  STATE      ENGINES   PID  HOST    SINCE
        default  -           running    4        4242  login1  1970-01-01T00:16:40.000000Z
        default  night       stale      1 of 4   4242  login1  1970-01-01T00:16:40.000000Z
        mine     -           stopped    -           -  -       -
        mine     far         elsewhere  ? of 16  4242  login1  1970-01-01T00:16:40.000000Z
        ");
    }
}
