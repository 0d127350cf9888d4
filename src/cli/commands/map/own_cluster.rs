//! `map -n N`: a cluster for one map, with an id of its own, stopped again however the map ends.
use crate::cli::commands::start::{Bar, interruptible};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::Condition;
use crate::cluster::{self, StartOptions};

/// Runs `work` with a cluster: the one that runs, or one of `n` engines for this only. `work` is told whether it stays.
pub fn with_cluster(
    n: Option<u32>,
    context: &Context,
    work: impl FnOnce(&Context, bool) -> Result<Exit, CommandError>,
) -> Result<Exit, CommandError> {
    let Some(n) = n else { return work(context, true) };
    let profile = context.profile_dir()?;
    let running = cluster::status(&profile, &context.cluster_id).is_some_and(|cluster| cluster.state == Condition::Running);
    if running {
        context.say(format!(
            "note: a cluster is running in {}: it is used, and -n has no effect",
            context.cluster_in_words()
        ));
        return work(context, true);
    }
    let own = context.for_cluster(&unique_id());
    let options = StartOptions {
        n: Some(n),
        ..StartOptions::new(profile.clone(), &own.cluster_id)
    };
    let mut bar = Bar::new(&own);
    interruptible(&own, cluster::start(options, &mut |progress| bar.show(progress)))?;
    bar.clear();
    own.say_more(format!("a cluster of {n} engines for this map: {}", own.cluster_in_words()));
    let result = work(&own, false);
    if let Err(error) = own.block_on(cluster::stop(&profile, &own.cluster_id, &mut |_| {}))? {
        own.say(format!("warning: the cluster of this map could not be stopped: {error}"));
        own.say(format!("hint: pcluster stop{}", own.options()));
    }
    own.say_more(format!(
        "the cluster is stopped; the results stay: pcluster results{}",
        own.options()
    ));
    result
}

/// Said of nothing else in the profile, and short enough to be typed.
fn unique_id() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("map-{}", &random[..8])
}
