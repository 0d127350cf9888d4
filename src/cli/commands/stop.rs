//! `pcluster stop`
use crate::cli::context::describe_cluster;
use crate::cli::output::counted;
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Condition, StopProgress, Stopped};
use crate::db::{self, Durability, Writer};
use crate::model::change::Change;
use crate::profile::ProfileDir;

/// Stop a cluster: its engines, then its controller
///
/// Keeps all records: `pcluster results` still shows them, and unfinished tasks resume at the next start.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster stop\n  pcluster stop --profile gpu\n  pcluster stop --all")]
pub(crate) struct Args {
    /// Stop all clusters of all profiles
    #[arg(long)]
    all: bool,
}

impl Args {
    pub(crate) fn is_all(&self) -> bool {
        self.all
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let clusters: Vec<(ProfileDir, String)> = match args.all {
        false => vec![(context.profile_dir()?, context.cluster_id.clone())],
        true => {
            let all = cluster::list(context.ipython_dir.as_deref())?;
            for cluster in all.iter().filter(|c| c.state == Condition::Remote) {
                let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
                let why = cluster.unseen.as_deref().unwrap_or("it runs on another host");
                context.note(format!("{name}: skipped, its state is unknown: {why}"));
            }
            let ours = all.iter().filter(|c| matches!(c.state, Condition::Running | Condition::Stale));
            ours.map(|c| (ProfileDir::at(&c.directory), c.cluster_id.clone())).collect()
        }
    };
    let mut failed: Option<CommandError> = None;
    let mut views = Vec::new();
    for (profile, cluster_id) in &clusters {
        match stop(profile, cluster_id, context) {
            Ok(stopped) => {
                let name = describe_cluster(profile.name(), cluster_id);
                if !context.json {
                    context.note(outcome(&name, &stopped));
                }
                views.push(serde_json::json!({
                    "profile": profile.name(), "cluster_id": cluster_id, "controller_was_dead": stopped.was_dead, "engines": stopped.engines,
                    "terminated": stopped.ended.terminated, "killed": stopped.ended.killed,
                }));
            }
            // Continue with the other clusters.
            Err(error) if args.all => {
                output::stderr_text(&error.render(context.terminal.color_stderr));
                failed = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if context.json {
        json::print(&serde_json::json!({"stopped": views}))?;
    } else if clusters.is_empty() {
        context.note("no clusters are running");
    }
    match failed {
        Some(error) => Err(CommandError::new(error.kind, "some clusters could not be stopped")),
        None => Ok(Exit::Fine),
    }
}

pub(crate) fn stop(profile: &ProfileDir, cluster_id: &str, context: &Context) -> Result<Stopped, CommandError> {
    let mut show = notes(context);
    let stopped = context.block_on(cluster::stop(profile, cluster_id, &mut show))??;
    if let Some(text) = db::noted_loss(&profile.database_file(cluster_id), true) {
        return Err(CommandError::failed(text).hint("the cluster is stopped; move that file to the path of the database"));
    }
    record(&stopped, profile, cluster_id, context);
    Ok(stopped)
}

/// Records how the jobs ended; the controller has exited by now.
pub(crate) fn record(stopped: &Stopped, profile: &ProfileDir, cluster_id: &str, context: &Context) {
    let path = profile.database_file(cluster_id);
    if stopped.jobs.is_empty() || !path.exists() {
        return;
    }
    let jobs = stopped.jobs.clone();
    let written = Writer::open(&path, Durability::Normal).and_then(|mut writer| {
        writer.apply(&[Change::JobsSeen { jobs }])?;
        writer.close()
    });
    if let Err(error) = written {
        context.note(format!("cannot record how the jobs ended: {error}"));
    }
}

/// Prints each state of the shutdown once.
pub(crate) fn notes(context: &Context) -> impl FnMut(StopProgress) {
    let mut last = 0;
    move |progress| match progress {
        StopProgress::Note(text) => context.note(text),
        StopProgress::Waiting { processes } if processes != last => {
            last = processes;
            context.note_verbose(format!("waiting for {processes} processes to end"));
        }
        StopProgress::Waiting { .. } => {}
    }
}

fn outcome(name: &str, stopped: &Stopped) -> String {
    let engines = counted(stopped.engines as u64, "engine");
    let mut text = match stopped.was_dead {
        false => format!("{name}: stopped, with {engines}"),
        true => format!("{name}: its controller was already dead; {engines} stopped, its files removed"),
    };
    match stopped.ended.killed {
        0 => {}
        1 => text.push_str(" (1 process had to be killed)"),
        n => text.push_str(&format!(" ({n} processes had to be killed)")),
    }
    text
}
