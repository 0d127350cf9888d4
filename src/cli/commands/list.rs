//! `pcluster list`
use crate::cli::context::Terminal;
use crate::cli::context::describe_cluster;
use crate::cli::output::counted;
use crate::cli::output::table::{Cell, Table, Tone};
use crate::cli::output::{self, json, times};
use crate::cli::tables::unavailable_engines;
use crate::cli::{CommandError, Context, Exit};
use crate::client::{Client, StatusReply};
use crate::cluster::list::LaunchSummary;
use crate::cluster::{ClusterSummary, Condition};
use crate::connection::ConnectionFile;
use crate::db::Reader;
use crate::model::UnixTime;
use crate::model::job::JobRow;
use crate::profile::ProfileDir;
use crate::ssh::tunnel::{Phase, TunnelState};
use serde::Serialize;
use std::time::Duration;

/// How long to wait for a controller's answer before skipping it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// List all clusters of all profiles
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster list\n  pcluster list --running --json")]
pub(crate) struct Args {
    /// Show only running clusters
    #[arg(long)]
    running: bool,
}

#[derive(Serialize)]
struct ClusterRow<'a> {
    profile: &'a str,
    cluster_id: &'a str,
    state: Condition,
    directory: &'a std::path::Path,
    controller_pid: Option<u32>,
    controller_host: Option<&'a str>,
    engines_started: usize,
    /// Null if unknown on this host.
    engines_alive: Option<usize>,
    /// In a batch system's queue.
    engines_queued: usize,
    /// As reported by the controller; null if it is not running or does not answer.
    engines_registered: Option<usize>,
    /// Registered engines that cannot run Python.
    engines_unavailable: Option<usize>,
    tasks_waiting: Option<u64>,
    tasks_running: Option<u64>,
    engines: &'a [LaunchSummary],
    controller_launch: Option<&'a LaunchSummary>,
    engine_kind: Option<&'a str>,
    launcher: Option<&'a str>,
    started: Option<String>,
    database: Option<&'a std::path::Path>,
    problem: Option<&'a str>,
    /// Why its processes are not visible on this host.
    unseen: Option<&'a str>,
    /// For a connection to a remote cluster.
    tunnel: Option<TunnelView<'a>>,
    /// The process that restarts engines after their walltime.
    walltime_monitor: Option<WalltimeMonitorView<'a>>,
    /// For a stopped cluster: the recorded jobs, as last seen.
    jobs_on_record: Vec<JobView>,
    /// If the work decides how many engines there are: one line for each shape of engines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elastic: Vec<String>,
}

#[derive(Serialize)]
struct WalltimeMonitorView<'a> {
    host: &'a str,
    pid: u32,
    runs: bool,
    /// Number of engines restarted in a new job.
    replaced: u32,
    problem: Option<&'a str>,
}

#[derive(Serialize)]
struct JobView {
    launcher: String,
    job: String,
    name: String,
    element: u32,
    engines: u32,
    replaces: u32,
    submitted: String,
    state: String,
    reason: String,
    over: bool,
    since: String,
}

impl JobView {
    fn new(row: JobRow) -> JobView {
        JobView {
            launcher: row.launcher,
            job: row.job,
            name: row.name,
            element: row.element,
            engines: row.engines,
            replaces: row.replaces,
            submitted: row.submitted.to_iso(),
            state: row.state,
            reason: row.reason,
            over: row.over,
            since: row.since.to_iso(),
        }
    }
}

/// The recorded jobs of a stopped cluster. Read errors are ignored: the list shows more than jobs.
fn jobs_on_record(cluster: &ClusterSummary) -> Vec<JobView> {
    let path = cluster
        .database
        .as_ref()
        .filter(|_| matches!(cluster.state, Condition::Stopped | Condition::Stale));
    let jobs = path.and_then(|path| Reader::open(path).ok()?.jobs().ok());
    jobs.unwrap_or_default().into_iter().map(JobView::new).collect()
}

#[derive(Serialize)]
pub(crate) struct TunnelView<'a> {
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
    pub(crate) fn new(tunnel: &'a TunnelState) -> TunnelView<'a> {
        TunnelView {
            destination: &tunnel.destination,
            phase: tunnel.phase,
            since: UnixTime(tunnel.since).to_iso(),
            problem: tunnel.problem.as_deref(),
            pid: tunnel.daemon.as_ref().map(|own| own.pid),
            reconnects: tunnel.reconnects,
            remote_profile: tunnel.leads_to.as_ref().map(|l| l.profile.as_str()),
            remote_cluster_id: tunnel.leads_to.as_ref().map(|l| l.cluster_id.as_str()),
            ports: &tunnel.ports,
        }
    }
}

impl<'a> ClusterRow<'a> {
    fn new(cluster: &'a ClusterSummary, status: Option<&StatusReply>) -> ClusterRow<'a> {
        ClusterRow {
            profile: &cluster.profile,
            cluster_id: &cluster.cluster_id,
            state: cluster.state,
            directory: &cluster.directory,
            controller_pid: cluster.controller.as_ref().map(|c| c.pid),
            controller_host: cluster.controller.as_ref().map(|c| c.host.as_str()),
            unseen: cluster.unseen.as_deref(),
            engines_started: cluster.engines_started,
            engines_alive: cluster.engines_alive,
            engines_queued: cluster.engines_queued,
            engines_registered: status.map(registered),
            engines_unavailable: status.map(|status| status.engines.iter().filter(|engine| engine.reason.is_some()).count()),
            tasks_waiting: status.map(|status| status.queued),
            tasks_running: status.map(|status| status.running),
            engines: &cluster.engines,
            controller_launch: cluster.controller_launch.as_ref(),
            engine_kind: cluster.engine_kind.as_deref(),
            launcher: cluster.launcher.as_deref(),
            started: cluster.started.map(|s| UnixTime(s).to_iso()),
            database: cluster.database.as_deref(),
            problem: cluster.problem.as_deref(),
            tunnel: cluster.tunnel.as_ref().map(TunnelView::new),
            walltime_monitor: cluster.walltime_monitor.as_ref().map(|monitor| WalltimeMonitorView {
                host: &monitor.host,
                pid: monitor.process.id.pid,
                runs: monitor.runs(),
                replaced: monitor.replaced,
                problem: monitor.problem.as_deref(),
            }),
            jobs_on_record: jobs_on_record(cluster),
            elastic: elastic_lines(cluster),
        }
    }
}

/// Of a running cluster whose work decides how many engines there are.
fn elastic_lines(cluster: &ClusterSummary) -> Vec<String> {
    match cluster.state {
        Condition::Running => super::elastic::lines_of(&ProfileDir::at(&cluster.directory), &cluster.cluster_id),
        _ => Vec::new(),
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let mut clusters = context.clusters()?;
    if args.running {
        clusters.retain(|c| matches!(c.state, Condition::Running | Condition::Connected));
    }
    let statuses = ask(&clusters, context)?;
    if context.json {
        let views: Vec<_> = clusters
            .iter()
            .zip(&statuses)
            .map(|(c, status)| ClusterRow::new(c, status.as_ref()))
            .collect();
        json::print(&serde_json::json!({"clusters": views}))?;
        return Ok(Exit::Fine);
    }
    if clusters.is_empty() {
        context.note("no clusters; `pcluster start -n 4` starts one");
        return Ok(Exit::Fine);
    }
    output::print(&table(&clusters, &statuses, times::now(), &context.terminal))?;
    for cluster in &clusters {
        for launch in cluster.engines.iter().chain(&cluster.controller_launch) {
            let jobs: Vec<&str> = launch.jobs.iter().map(|job| job.id.as_str()).collect();
            let replaces = launch.jobs.iter().filter(|job| job.replaces > 0);
            let replaces = replaces
                .map(|job| format!("replacement {} of {}", job.replaces, job.max_restarts))
                .next();
            let leaving = match launch.leaving {
                0 => None,
                n => Some(format!("{} leaving", counted(n as u64, "engine"))),
            };
            let words: Vec<String> = Some(launch.states.clone())
                .filter(|s| !s.is_empty())
                .into_iter()
                .chain(leaving)
                .chain(replaces)
                .collect();
            if !jobs.is_empty() && !words.is_empty() {
                let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
                context.note(format!("{name}: {} job {}: {}", launch.launcher, jobs.join(" "), words.join("; ")));
            }
        }
    }
    for cluster in &clusters {
        let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
        for line in elastic_lines(cluster) {
            context.note(format!("{name}: elastic {line}"));
        }
    }
    for cluster in &clusters {
        let tunnels = || cluster.engines.iter().flat_map(|launch| &launch.reverse_tunnels);
        if tunnels().next().is_none() {
            continue;
        }
        let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
        let well: Vec<&str> = tunnels().filter(|t| t.is_well()).map(|t| t.to.as_str()).collect();
        if !well.is_empty() {
            context.note(format!("{name}: reverse tunnels are up to {}", well.join(", ")));
        }
        tunnels()
            .filter(|t| !t.is_well())
            .for_each(|t| context.note(format!("{name}: {}", t.words)));
    }
    for (cluster, status) in clusters.iter().zip(&statuses) {
        let engines = status.as_ref().map(|status| status.engines.as_slice()).unwrap_or_default();
        let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
        for line in unavailable_engines(engines) {
            context.note(format!("{name}: {line}"));
        }
    }
    for cluster in clusters.iter().filter(|c| c.problem.is_some()) {
        context.note(format!(
            "profile `{}`: {}",
            cluster.profile,
            cluster.problem.as_deref().unwrap_or_default()
        ));
    }
    for cluster in clusters.iter().filter(|c| c.state == Condition::Remote) {
        let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
        let why = cluster.unseen.as_deref().unwrap_or("it is on another host");
        context.note(format!("{name}: its controller is not visible from this host: {why}"));
    }
    for cluster in clusters.iter().filter(|c| c.state == Condition::Connected) {
        let Some(tunnel) = &cluster.tunnel else { continue };
        context.note(format!("profile `{}`: {}", cluster.profile, tunnel.describe()));
    }
    if clusters.iter().any(|c| c.state == Condition::Stale) {
        context.note("`pcluster clean` removes files of stale clusters; `pcluster start` starts one again");
    }
    Ok(Exit::Fine)
}

/// The status of each running controller; none if it does not answer in time.
fn ask(clusters: &[ClusterSummary], context: &Context) -> Result<Vec<Option<StatusReply>>, CommandError> {
    let ask = |cluster: &ClusterSummary| {
        let runs = matches!(cluster.state, Condition::Running | Condition::Remote | Condition::Connected);
        let path = ProfileDir::at(&cluster.directory).client_file(&cluster.cluster_id);
        async move {
            let file = ConnectionFile::read(&path).ok().filter(|file| runs && file.pcluster.is_some())?;
            let client = Client::connect(&file, TIMEOUT).await.ok()?;
            tokio::time::timeout(TIMEOUT, client.status()).await.ok()?.ok()
        }
    };
    context.block_on(async {
        let asked: Vec<_> = clusters.iter().map(|cluster| tokio::spawn(ask(cluster))).collect();
        let mut statuses = Vec::new();
        for answer in asked {
            statuses.push(answer.await.ok().flatten());
        }
        statuses
    })
}

fn registered(status: &StatusReply) -> usize {
    status.engines.iter().filter(|engine| engine.state.is_staying()).count()
}

/// Engines up, out of how many, and how many of the others are queued. Registered engines are up, whatever a batch system reports.
fn engines(cluster: &ClusterSummary, status: Option<&StatusReply>) -> Option<String> {
    if cluster.engines_started == 0 && status.is_none_or(|s| s.engines.is_empty()) {
        return None;
    }
    let started = cluster.engines_started;
    let up = status.map(registered).or(cluster.engines_alive);
    let mut text = match up {
        Some(up) if up >= started => up.to_string(),
        Some(up) => format!("{up} of {started}"),
        None => format!("? of {started}"),
    };
    if cluster.engines_queued > 0 && up.is_none_or(|up| up < started) {
        let queued = cluster.engines_queued.min(started - up.unwrap_or(0).min(started));
        text.push_str(&format!(", {queued} queued"));
    }
    Some(text)
}

/// `slurm 4711 4712`
fn jobs(cluster: &ClusterSummary) -> Option<String> {
    let mut words = Vec::new();
    for launch in cluster.engines.iter().filter(|launch| !launch.jobs.is_empty()) {
        if !words.contains(&launch.launcher.as_str()) {
            words.push(&launch.launcher);
        }
        words.extend(launch.jobs.iter().map(|job| job.id.as_str()));
    }
    (!words.is_empty()).then(|| words.join(" "))
}

fn table(clusters: &[ClusterSummary], statuses: &[Option<StatusReply>], now: UnixTime, terminal: &Terminal) -> String {
    let has_jobs = clusters.iter().any(|cluster| jobs(cluster).is_some());
    let mut table = Table::new().text("PROFILE").column("CLUSTER ID").column("STATE").column("ENGINES");
    if has_jobs {
        table = table.text("JOBS");
    }
    table = table.number("WAITING").number("PID").column("HOST").column("SINCE");
    let none = None;
    for (cluster, status) in clusters.iter().zip(statuses.iter().chain(std::iter::repeat(&none))) {
        let tone = match cluster.state {
            Condition::Running => Tone::Good,
            Condition::Connected if cluster.tunnel.as_ref().is_some_and(|t| t.phase != Phase::Up) => Tone::Bad,
            Condition::Connected => Tone::Good,
            Condition::Stale => Tone::Bad,
            Condition::Stopped => Tone::Faint,
            Condition::Remote | Condition::Foreign => Tone::Active,
        };
        let since = cluster.started.filter(|_| cluster.state != Condition::Stopped).map(UnixTime);
        let when = |t: UnixTime| if terminal.stdout { times::ago(now, t) } else { t.to_iso() };
        let controller = cluster.controller.as_ref().filter(|_| cluster.state != Condition::Stopped);
        let mut row = vec![
            Cell::new(&cluster.profile),
            Cell::or_dash(Some(&cluster.cluster_id).filter(|id| !id.is_empty())),
            Cell::new(cluster.state).tone(tone),
            Cell::or_dash(engines(cluster, status.as_ref())),
        ];
        if has_jobs {
            row.push(Cell::or_dash(jobs(cluster)));
        }
        row.extend([
            Cell::or_dash(status.as_ref().map(|status| status.queued)),
            Cell::or_dash(controller.map(|c| c.pid)),
            Cell::or_dash(controller.map(|c| &c.host)),
            Cell::or_dash(since.map(when)),
        ]);
        table.row(row);
    }
    table.render(terminal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::ProcessId;

    #[test]
    fn clusters_at_80_columns() {
        let cluster = |profile: &str, id: &str, state, alive, started: usize| ClusterSummary {
            profile: profile.into(),
            directory: format!("/home/u/.ipython/profile_{profile}").into(),
            cluster_id: id.into(),
            state,
            controller: Some(ProcessId {
                pid: 4242,
                host: "login1".into(),
                ..ProcessId::default()
            }),
            unseen: None,
            engines_started: started,
            engines_alive: alive,
            engines_queued: 0,
            engines: Vec::new(),
            controller_launch: None,
            engine_kind: Some("pcluster".into()),
            launcher: Some("local".into()),
            started: Some(1000.0),
            database: None,
            problem: None,
            tunnel: None,
            walltime_monitor: None,
        };
        let clusters = [
            cluster("default", "", Condition::Running, Some(4), 4),
            cluster("default", "night", Condition::Stale, Some(1), 4),
            cluster("mine", "", Condition::Stopped, Some(0), 0),
            cluster("mine", "far", Condition::Remote, None, 16),
        ];
        insta::assert_snapshot!(table(&clusters, &[], UnixTime(9000.0), &Terminal { stdout: true, ..Terminal::NONE }), @r"
        PROFILE  CLUSTER ID  STATE    ENGINES  WAITING   PID  HOST    SINCE
        default  -           running  4              -  4242  login1  2 h ago
        default  night       stale    1 of 4         -  4242  login1  2 h ago
        mine     -           stopped  -              -     -  -       -
        mine     far         remote   ? of 16        -  4242  login1  2 h ago
        ");
        insta::assert_snapshot!(table(&clusters, &[], UnixTime(9000.0), &Terminal::NONE), @r"
        PROFILE  CLUSTER ID  STATE    ENGINES  WAITING   PID  HOST    SINCE
        default  -           running  4              -  4242  login1  1970-01-01T00:16:40.000000Z
        default  night       stale    1 of 4         -  4242  login1  1970-01-01T00:16:40.000000Z
        mine     -           stopped  -              -     -  -       -
        mine     far         remote   ? of 16        -  4242  login1  1970-01-01T00:16:40.000000Z
        ");
    }
}
