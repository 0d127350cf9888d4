//! `pcluster script`
use super::start::EngineArg;
use crate::cli::output::{self, json};
use crate::cli::resources::SettingArgs;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::ClusterError;
use crate::launchers::batch::{self, BatchSystem, JobRequest, ScriptFile, environment};
use crate::launchers::command::{LocalRunner, Runner};
use crate::launchers::{ControllerLaunch, EnginesLaunch, templates};
use crate::model::shell;
use crate::profile::config::EngineKind;
use crate::profile::{Config, ProfileDir};
use std::time::Duration;

/// Print the script that `start` would submit to a batch system
///
/// Prints the complete script to stdout and the submit command to stderr. Submits nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster script --launcher slurm -n 64 --walltime 2h\n  pcluster script --launcher pbs --controller > controller.sh"
)]
pub(crate) struct Args {
    /// Start N engines [default: launcher.n of the profile, else one per processor]
    #[arg(short, value_name = "N")]
    n: Option<u32>,
    /// Print the controller's script instead of the engines'
    #[arg(long)]
    controller: bool,
    #[command(flatten)]
    settings: SettingArgs,
    /// Start this kind of engine: pcluster's own, or ipyparallel's
    #[arg(long, value_name = "KIND", help_heading = None::<&str>)]
    engine: Option<EngineArg>,
    /// Run this Python interpreter on the engines [default: the active environment's, else python3]
    #[arg(long, value_name = "PYTHON", help_heading = None::<&str>)]
    python: Option<String>,
    /// Set the log level of controller and engines: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", help_heading = None::<&str>)]
    log_level: Option<String>,
}

/// A placeholder for the unique letters of each submission.
const UNIQUE: &str = "preview";
/// How long to wait for the batch system to report its dialect.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    crate::profile::dir::check_cluster_id(&context.cluster_id)?;
    let (_, mut config) = args.settings.config(&profile)?;
    if let Some(kind) = args.engine {
        config.engine.kind = EngineKind::from(kind);
    }
    let name = match args.controller && args.settings.launcher.is_none() && config.launcher.controller != "local" {
        true => config.launcher.controller.clone(),
        false => config.launcher.engines.clone(),
    };
    let Some(system) = batch::by_name(&name) else {
        return Err(CommandError::usage(format!("the launcher `{name}` does not submit scripts"))
            .hint(format!("choose a batch system: --launcher {}", batch::SYSTEMS.join(", "))));
    };
    let system = dialect(system, context);
    let request = request(&args, &config, &profile, system, context)?;
    let request = request.with_site_settings(system, |question| {
        LocalRunner.run(&environment::for_query(system.table(), question), ANSWER).ok()
    });
    let files = templates::scripts(&profile, system, &request, None).map_err(ClusterError::Launch)?;
    show(system, &request, &files, context)
}

/// The local dialect, if the system has several: as it reports, else the default.
fn dialect(system: &'static dyn BatchSystem, context: &Context) -> &'static dyn BatchSystem {
    let Some(question) = system.dialect_command() else {
        return system;
    };
    let reply = LocalRunner
        .run(&environment::for_query(system.table(), question.clone()), ANSWER)
        .ok();
    match reply.and_then(|reply| system.detect_dialect(&reply)) {
        Some(dialect) => dialect,
        None => {
            context.note(format!(
                "`{question}` does not report which {} is installed; assuming {}",
                system.name(),
                system.title()
            ));
            system
        }
    }
}

fn request(
    args: &Args,
    config: &Config,
    profile: &ProfileDir,
    system: &dyn BatchSystem,
    context: &Context,
) -> Result<JobRequest, CommandError> {
    let unknown = |what: &str, e: std::io::Error| CommandError::environment(format!("cannot determine {what}: {e}"));
    let program = std::env::current_exe().map_err(|e| unknown("the path of this program", e))?;
    let cwd = std::env::current_dir().map_err(|e| unknown("the working directory", e))?;
    let resources = config.launchers.of(system.name()).cloned().unwrap_or_default();
    // As in `start`: settings that only affect how engines are started are not passed on.
    let settings = args.settings.settings.clone();
    if args.controller {
        let launch = ControllerLaunch {
            program,
            profile: profile.clone(),
            cluster_id: context.cluster_id.clone(),
            settings,
            cwd,
            log_level: args.log_level.clone(),
        };
        return Ok(batch::launch::controller(&launch, &resources, UNIQUE));
    }
    let processors = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let launch = EnginesLaunch {
        program,
        profile: profile.clone(),
        cluster_id: context.cluster_id.clone(),
        settings,
        kind: config.engine.kind,
        n: args.n.or(config.launcher.n).unwrap_or_else(processors),
        first: 0,
        python: args.python.clone().or(config.engine.python.clone()),
        ipengine: config.engine.ipengine.clone(),
        cwd,
        log_level: args.log_level.clone(),
        tag: None,
    };
    Ok(batch::launch::engines(&launch, &resources, &config.launchers.mpi, UNIQUE).map_err(ClusterError::Launch)?)
}

fn show(system: &dyn BatchSystem, request: &JobRequest, files: &[ScriptFile], context: &Context) -> Result<Exit, CommandError> {
    let Some(first) = files.first() else {
        return Err(CommandError::internal("no template"));
    };
    let command = system.submit_command(&first.path, &first.text, request);
    if context.json {
        let views: Vec<_> = files
            .iter()
            .map(|file| serde_json::json!({"path": file.path, "text": file.text}))
            .collect();
        json::print(&serde_json::json!({
            "launcher": system.name(),
            "dialect": system.dialect(),
            "engines": request.n,
            "jobs": request.jobs(),
            "command": command.to_string(),
            "from_stdin": command.stdin.is_some(),
            "files": views,
        }))?;
        return Ok(Exit::Fine);
    }
    let mut text = String::new();
    for file in files {
        if files.len() > 1 {
            text.push_str(&format!("# ---- {}\n", file.path.display()));
        }
        text.push_str(&file.text);
    }
    output::print(&text)?;
    let from = if command.stdin.is_some() {
        format!(" < {}", shell::quoted(first.path.display()))
    } else {
        String::new()
    };
    context.note(format!("{} would run: {command}{from}", system.title()));
    context.note(format!(
        "nothing was submitted; `{UNIQUE}` is a placeholder for letters that are unique to each submission"
    ));
    Ok(Exit::Fine)
}
