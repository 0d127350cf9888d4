//! `pcluster clean`
use super::stop::{notes, record};
use crate::cli::context::describe_cluster;
use crate::cli::output::counted;
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Condition};
use crate::engine::code_directory;
use crate::profile::ProfileDir;

/// Remove files left by dead clusters
///
/// Removes connection and state files of dead controllers, and stops engines that they left behind. Also removes the code of maps
/// that killed engines left on this host. Keeps all task records. Cleans all profiles, unless --profile names one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster clean\n  pcluster clean --profile gpu --force")]
pub(crate) struct Args {
    /// Also clean clusters whose state is unknown here (on another host, in a container); list what may still be running
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let clusters = context.clusters()?;
    let dead: Vec<_> = clusters
        .iter()
        .filter(|c| c.state == Condition::Stale || (args.force && matches!(c.state, Condition::Remote | Condition::Foreign)))
        .collect();
    let mut views = Vec::new();
    let mut failed: Option<CommandError> = None;
    for cluster in &dead {
        let profile = ProfileDir::at(&cluster.directory);
        let mut show = notes(context);
        let stopped = match context.block_on(cluster::clean(&profile, &cluster.cluster_id, args.force, &mut show))? {
            Ok(stopped) => stopped,
            // Continue with the other clusters.
            Err(error) if dead.len() > 1 => {
                let error = CommandError::from(error);
                output::stderr_text(&error.render(context.terminal.color_stderr));
                failed = Some(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        record(&stopped, &profile, &cluster.cluster_id, context);
        if !context.json {
            let engines = match stopped.engines {
                0 => String::new(),
                n => format!(", {} stopped", counted(n as u64, "engine")),
            };
            context.note(format!(
                "{}: cleaned{engines}",
                describe_cluster(&cluster.profile, &cluster.cluster_id)
            ));
        }
        views.push(serde_json::json!({"profile": profile.name(), "cluster_id": cluster.cluster_id, "engines": stopped.engines}));
    }
    let swept = code_directory::sweep();
    if context.json {
        json::print(&serde_json::json!({"cleaned": views, "code_directories": swept}))?;
        return failed.map_or(Ok(Exit::Fine), |error| Err(not_all(&error)));
    }
    match swept {
        0 => {}
        1 => context.note("removed 1 code directory of a killed engine"),
        n => context.note(format!("removed {n} code directories of killed engines")),
    }
    if dead.is_empty() {
        context.note(if swept == 0 {
            "nothing to clean"
        } else {
            "clusters: nothing to clean"
        });
    }
    for cluster in clusters.iter().filter(|c| !args.force && c.state == Condition::Remote) {
        let why = cluster.unseen.as_deref().unwrap_or("it runs on another host");
        let name = describe_cluster(&cluster.profile, &cluster.cluster_id);
        context.note(format!("{name}: skipped, its state is unknown: {why}; if it is dead: --force"));
    }
    failed.map_or(Ok(Exit::Fine), |error| Err(not_all(&error)))
}

fn not_all(error: &CommandError) -> CommandError {
    CommandError::new(error.kind, "some clusters could not be cleaned")
}
