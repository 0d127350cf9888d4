//! `pcluster elastic`: how the work decides how many engines there are.
use crate::cli::output::visible::visible;
use crate::cli::output::{self, json, times};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::allocator::record::{DecisionRow, ElasticCluster, Journal};
use crate::cluster::allocator::settings::{self, Limits};
use crate::cluster::elastic::decision::{Action, Decision};
use crate::cluster::elastic::observation::Control;
use crate::cluster::elastic::settings::ElasticSettings;
use crate::model::UnixTime;
use crate::profile::ProfileDir;
use crate::profile::config::elastic::{CoreHours, Span};

/// Show and change how the work decides how many engines there are
///
/// For clusters that were started with --max: engines are started when tasks wait, and retired when they are idle.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster elastic\n  pcluster elastic set --max 32\n  pcluster elastic log")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<ElasticAction>,
}

#[derive(Debug, clap::Subcommand)]
enum ElasticAction {
    /// Show the limits, and why there are not more or fewer engines (the default)
    Show,
    /// Change limits
    Set(SetArgs),
    /// Start no more engines until `resume`; those that are idle are still retired
    Pause,
    /// Start engines again, and forget earlier failures
    Resume,
    /// Keep the engines that there are, in a fixed number
    Off,
    /// List the decisions with their reasons
    Log {
        /// Show at most the last N decisions
        #[arg(short, value_name = "N")]
        n: Option<usize>,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct SetArgs {
    /// Keep at least N engines
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Start at most N engines
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Retire engines that have been idle for DURATION (`90s`, `5m`)
    #[arg(long, value_name = "DURATION")]
    idle: Option<Span>,
    /// Grant all jobs together at most this many core-hours (`500ch`)
    #[arg(long, value_name = "CORE-HOURS")]
    budget: Option<CoreHours>,
    /// Let at most N jobs wait in the queue
    #[arg(long, value_name = "N")]
    max_queued: Option<u32>,
    /// Start another engine only if it has DURATION to do
    #[arg(long, value_name = "DURATION")]
    work_per_engine: Option<Span>,
}

impl SetArgs {
    fn limits(&self) -> Limits {
        Limits {
            min: self.min,
            max: self.max,
            idle_s: self.idle.map(|span| span.seconds),
            max_queued: self.max_queued,
            budget_core_h: self.budget.map(|budget| budget.hours),
            work_per_engine_s: self.work_per_engine.map(|span| span.seconds),
        }
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    let id = context.cluster_id.as_str();
    match args.action {
        None | Some(ElasticAction::Show) => show(context)?,
        Some(ElasticAction::Set(changes)) => {
            let settings = context.block_on(settings::set(&profile, id, &changes.limits()))??;
            context.note(format!("elastic: {}", limits(&settings)));
        }
        Some(ElasticAction::Pause) => {
            context.block_on(settings::ask(&profile, id, Control::Pause(None)))??;
            context.note(format!(
                "no more engines are started until `pcluster elastic{} resume`",
                context.options()
            ));
        }
        Some(ElasticAction::Resume) => {
            context.block_on(settings::ask(&profile, id, Control::Resume(None)))??;
            context.note("engines are started again; earlier failures are forgotten");
        }
        Some(ElasticAction::Off) => {
            context.block_on(settings::off(&profile, id))??;
            context.note(format!(
                "the number of engines is fixed; change it with `pcluster scale{} N`",
                context.options()
            ));
        }
        Some(ElasticAction::Log { n }) => log(n, context)?,
    }
    Ok(Exit::Fine)
}

/// `0–64 engines, idle for 5 min at most, 4 jobs in the queue at most`
fn limits(settings: &ElasticSettings) -> String {
    let several = settings.shapes.len() > 1;
    let shapes = settings.shapes.iter().map(|shape| {
        let name = if several { format!("{}: ", shape.name) } else { String::new() };
        let idle = times::duration(shape.idle_s);
        format!(
            "{name}{}–{} engines, idle for {idle} at most, {} queued at most",
            shape.min, shape.max, shape.max_queued
        )
    });
    let mut parts: Vec<String> = shapes.collect();
    parts.push(format!("another one has {} to do", times::duration(settings.work_per_engine_s)));
    parts.extend(settings.budget_core_h.map(|budget| format!("{budget} core-hours")));
    parts.join("; ")
}

fn show(context: &Context) -> Result<(), CommandError> {
    let (cluster, journal) = settings::show(&context.profile_dir()?, &context.cluster_id)?;
    if context.json {
        return json::print(&serde_json::json!({
            "settings": cluster.settings,
            "launcher": cluster.launcher,
            "summary": journal.summary,
        }));
    }
    if !settings::is_deciding(&context.profile_dir()?, &context.cluster_id) {
        context.note(format!(
            "warning: the process that decides was killed; start it: pcluster elastic{} resume",
            context.options()
        ));
    }
    let mut text = format!("{:<12}{}, launcher {}\n", "limits", limits(&cluster.settings), cluster.launcher);
    for line in lines(&cluster, &journal) {
        text.push_str(&format!("{:<12}{line}\n", "now"));
    }
    for line in reasons(&journal) {
        text.push_str(&line);
        text.push('\n');
    }
    output::print(&visible(&text))
}

/// `pcluster explain elastic`
pub(crate) fn explain(context: &Context) -> Result<(), CommandError> {
    let (_, journal) = settings::show(&context.profile_dir()?, &context.cluster_id)?;
    let lines = reasons(&journal);
    if context.json {
        return json::print(&serde_json::json!({"explanation": lines, "summary": journal.summary}));
    }
    output::print(&visible(&format!("{}\n", lines.join("\n"))))
}

/// The lines of `status`; none for a cluster with a fixed number of engines.
pub(crate) fn lines_of(profile: &ProfileDir, cluster_id: &str) -> Vec<String> {
    match settings::show(profile, cluster_id) {
        Ok((cluster, journal)) => lines(&cluster, &journal),
        Err(error) => {
            tracing::debug!("{error}");
            Vec::new()
        }
    }
}

/// `12 of 0–64 · …`, one line per shape; none before the first decision.
fn lines(cluster: &ElasticCluster, journal: &Journal) -> Vec<String> {
    let now = times::now();
    // The stored summary may be older than one interval: nothing has changed since.
    let age = now.since(journal.summary.decided).rem_euclid(cluster.settings.interval_s.max(1.0));
    let at = UnixTime(journal.summary.decided.0 + age);
    journal.summary.lines(at, times::time_of_day)
}

/// Why there are not more, and not fewer engines.
fn reasons(journal: &Journal) -> Vec<String> {
    let several = journal.summary.shapes.len() > 1;
    let mut lines = Vec::new();
    for shape in &journal.summary.shapes {
        let name = if several { format!(" ({})", shape.name) } else { String::new() };
        lines.push(format!("why not more{name}: {}", shape.why_not_more));
        lines.push(format!("why not fewer{name}: {}", shape.why_not_fewer));
    }
    for unfit in &journal.summary.unfit {
        lines.push(format!("cannot run {} ({} ready): {}", unfit.name, unfit.units, unfit.why));
    }
    if lines.is_empty() {
        lines.push("nothing has been decided yet".into());
    }
    lines
}

fn log(n: Option<usize>, context: &Context) -> Result<(), CommandError> {
    let (_, journal) = settings::show(&context.profile_dir()?, &context.cluster_id)?;
    let skipped = n.map_or(0, |n| journal.decisions.len().saturating_sub(n));
    let rows = &journal.decisions[skipped..];
    if context.json {
        let row = |row: &DecisionRow| {
            let mut value = serde_json::to_value(row).unwrap_or_default();
            value["time"] = row.time.to_iso().into();
            value
        };
        return json::print(&serde_json::json!({"decisions": rows.iter().map(row).collect::<Vec<_>>()}));
    }
    let line = |row: &DecisionRow| {
        let Decision { shape, action, reason } = &row.decision;
        format!("{}  {shape}: {}: {reason}\n", times::local_time(row.time), describe(action))
    };
    let text: String = rows.iter().map(line).collect();
    output::print(&visible(&text))
}

fn describe(action: &Action) -> String {
    let jobs = |n: usize| output::counted(n as u64, "job");
    match action {
        Action::Submit {
            launch,
            jobs: n,
            engines_per_job,
        } => format!(
            "start {} (launch {launch})",
            output::counted(u64::from(*n) * u64::from(*engines_per_job), "engine")
        ),
        Action::CancelQueued { jobs: all } => format!("cancel {}", jobs(all.len())),
        Action::CancelUnregistered { jobs: all } => format!("cancel {} without engines", jobs(all.len())),
        Action::Retire { jobs: all } => format!("retire {}", jobs(all.len())),
        Action::Drain { jobs: all } => format!("drain {}", jobs(all.len())),
        Action::GiveUp { launch } => format!("give up launch {launch}"),
        Action::Pause => "pause".into(),
        Action::Resume => "resume".into(),
    }
}
