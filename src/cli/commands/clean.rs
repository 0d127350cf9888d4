//! `pcluster clean`
use super::counted;
use super::stop::{in_words, notes, record};
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Condition};
use crate::engine::code_directory;
use crate::profile::ProfileDir;

/// Clear away what dead clusters have left
///
/// Removes connection and state files of controllers that are gone, and ends engines that they left behind; also the code of maps
/// that engines of yours left on this host when they were killed. Records of tasks are kept. All profiles, unless --profile names one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also of clusters of which it cannot be told from here whether they run (on another host, in a container); what may be left running is named
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let clusters = context.clusters()?;
    let dead: Vec<_> = clusters
        .iter()
        .filter(|c| c.state == Condition::Stale || (args.force && matches!(c.state, Condition::Elsewhere | Condition::Foreign)))
        .collect();
    let mut views = Vec::new();
    let mut failed: Option<CommandError> = None;
    for cluster in &dead {
        let profile = ProfileDir::at(&cluster.directory);
        let mut show = notes(context);
        let stopped = match context.block_on(cluster::clean(&profile, &cluster.cluster_id, args.force, &mut show))? {
            Ok(stopped) => stopped,
            // The others are to be cleared away all the same.
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
                n => format!(", and {} ended", counted(n as u64, "engine")),
            };
            context.say(format!("{}: cleared away{engines}", in_words(&profile, &cluster.cluster_id)));
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
        1 => context.say("1 directory with code of maps, left by an engine that was killed: removed"),
        n => context.say(format!(
            "{n} directories with code of maps, left by engines that were killed: removed"
        )),
    }
    if dead.is_empty() {
        context.say(if swept == 0 {
            "nothing to clear away"
        } else {
            "clusters: nothing to clear away"
        });
    }
    for cluster in clusters.iter().filter(|c| !args.force && c.state == Condition::Elsewhere) {
        let why = cluster.unseen.as_deref().unwrap_or("it is on another host");
        let name = in_words(&ProfileDir::at(&cluster.directory), &cluster.cluster_id);
        context.say(format!(
            "{name}: left alone, as it cannot be told whether it runs: {why}; if you know that it is gone: --force"
        ));
    }
    failed.map_or(Ok(Exit::Fine), |error| Err(not_all(&error)))
}

fn not_all(error: &CommandError) -> CommandError {
    CommandError::new(error.kind, "not every cluster could be cleared away")
}
