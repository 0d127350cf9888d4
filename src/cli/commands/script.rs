//! `pcluster script`
use super::start::Kind;
use crate::cli::output::{self, json};
use crate::cli::resources::SettingArgs;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::ClusterError;
use crate::launchers::batch::{self, BatchSystem, JobRequest, ScriptFile, environment};
use crate::launchers::command::{LocalRunner, Runner};
use crate::launchers::{ControllerLaunch, EnginesLaunch, templates};
use crate::profile::config::EngineKind;
use crate::profile::{Config, ProfileDir};
use std::time::Duration;

/// Show the script that a start would submit to a batch system, and submit nothing
///
/// The script goes to stdout, complete; how it would be submitted is said on stderr.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many engines [default: launcher.n of the profile, else one for each processor]
    #[arg(short, value_name = "N")]
    n: Option<u32>,
    /// The script of the controller, instead of that of the engines
    #[arg(long)]
    controller: bool,
    #[command(flatten)]
    settings: SettingArgs,
    /// pcluster's own engine, or ipyparallel's
    #[arg(long, value_name = "KIND")]
    engine: Option<Kind>,
    /// The Python interpreter of the engines [default: the active environment's, else python3]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// How much controller and engines log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Stands where each submission has letters of its own.
const UNIQUE: &str = "preview";
/// How long the batch system may take to say which dialect it is.
const ANSWER: Duration = Duration::from_secs(10);

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
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
        return Err(CommandError::usage(format!("the launcher `{name}` submits no script"))
            .hint(format!("name a batch system: --launcher {}", batch::SYSTEMS.join(", "))));
    };
    let system = dialect(system, context);
    let request = request(&args, &config, &profile, system, context)?;
    let request = request.with_site_settings(system, |question| {
        LocalRunner.run(&environment::for_query(system, question), ANSWER).ok()
    });
    let files = templates::scripts(&profile, system, &request, None).map_err(ClusterError::Launch)?;
    show(system, &request, &files, context)
}

/// The dialect of this place, if it has any: what a system here says of itself, else the one that is assumed.
fn dialect(system: &'static dyn BatchSystem, context: &Context) -> &'static dyn BatchSystem {
    let Some(question) = system.dialect_command() else {
        return system;
    };
    let said = LocalRunner.run(&environment::for_query(system, question.clone()), ANSWER).ok();
    match said.and_then(|said| system.detect_dialect(&said)) {
        Some(dialect) => dialect,
        None => {
            context.say(format!(
                "`{question}` does not tell here which {} it is; this is for {}",
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
    let unknown = |what: &str, e: std::io::Error| CommandError::environment(format!("cannot tell {what}: {e}"));
    let program = std::env::current_exe().map_err(|e| unknown("which program this is", e))?;
    let cwd = std::env::current_dir().map_err(|e| unknown("the working directory", e))?;
    let resources = config.launchers.of(system.name()).cloned().unwrap_or_default();
    // As `start` has it: what only says how engines are started is of no use to them.
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
    };
    Ok(batch::launch::engines(&launch, &resources, &config.launchers.mpi, UNIQUE).map_err(ClusterError::Launch)?)
}

fn show(system: &dyn BatchSystem, request: &JobRequest, files: &[ScriptFile], context: &Context) -> Result<Exit, CommandError> {
    let Some(first) = files.first() else {
        return Err(CommandError::internal("there is no template"));
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
        format!(" < {}", batch::quote::shell(&first.path.to_string_lossy()))
    } else {
        String::new()
    };
    context.say(format!("{} would be asked by: {command}{from}", system.title()));
    context.say(format!(
        "nothing was submitted; `{UNIQUE}` stands for letters that each submission has of its own"
    ));
    Ok(Exit::Fine)
}
