//! One file per command, in the order of the help.
pub(crate) mod apply;
pub(crate) mod cancel;
pub(crate) mod clean;
pub(crate) mod completions;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod controller;
pub(crate) mod disconnect;
pub(crate) mod doctor;
pub(crate) mod elastic;
pub(crate) mod engine;
pub(crate) mod engines;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod gather;
pub(crate) mod help_markdown;
pub(crate) mod install;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod map;
pub(crate) mod priority;
pub(crate) mod profile;
pub(crate) mod pull;
pub(crate) mod purge;
pub(crate) mod push;
pub(crate) mod remote_exec;
pub(crate) mod restart;
pub(crate) mod resubmit;
pub(crate) mod results;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod scatter;
pub(crate) mod script;
pub(crate) mod signal;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod template;
pub(crate) mod tunnel;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod walltime_monitor;

use super::{CommandError, Context, Exit};
use crate::launchers::supervisor::{self, Supervised};
use crate::model::query::parse_duration;
use std::ffi::OsString;
use std::path::PathBuf;

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident => $module:ident),* $(,)?) => {
        #[derive(Debug, clap::Subcommand)]
        pub(crate) enum Command {
            $($(#[$attribute])* $variant($module::Args)),*
        }
        pub(crate) fn dispatch(command: Command, context: &Context) -> Result<Exit, CommandError> {
            if let Some(exit) = remote_exec::run_instead(&command, context)? {
                return Ok(exit);
            }
            match command {
                $(Command::$variant(args) => $module::run(args, context)),*
            }
        }
    };
}

commands! {
    Start => start,
    Stop => stop,
    Restart => restart,
    List => list,
    Clean => clean,
    Status => status,
    Engines => engines,
    Scale => scale,
    Elastic => elastic,
    Logs => logs,
    Script => script,
    Connect => connect,
    Disconnect => disconnect,
    Connection => connection,
    Install => install,
    Map => map,
    Apply => apply,
    Exec => exec,
    Run => run,
    Push => push,
    Pull => pull,
    Scatter => scatter,
    Gather => gather,
    Signal => signal,
    Results => results,
    Explain => explain,
    Resubmit => resubmit,
    Cancel => cancel,
    Priority => priority,
    Wait => wait,
    Purge => purge,
    Doctor => doctor,
    Profile => profile,
    Template => template,
    Completions => completions,
    Version => version,
    #[command(hide = true)]
    Controller => controller,
    #[command(hide = true)]
    Engine => engine,
    #[command(hide = true)]
    WalltimeMonitor => walltime_monitor,
    #[command(hide = true)]
    Tunnel => tunnel,
    #[command(hide = true)]
    HelpMarkdown => help_markdown,
}

/// `--set key=value`.
pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_string(), value.trim().to_string())),
        _ => Err(format!("{text:?} is not KEY=VALUE, for example engine.interrupt_timeout_ms=1000")),
    }
}

/// How this program supervises itself.
struct SupervisionPolicy {
    /// Further arguments for restarts.
    again: &'static [&'static str],
    /// Retry if a process that ran before fails to start again.
    retries: bool,
    /// The process watches its supervisor.
    watches: bool,
}

const SUPERVISE: &str = "--supervise";

/// Runs this command line without `--supervise` as a child process, and restarts it when it is killed or crashes.
fn supervise(policy: &SupervisionPolicy, problem: Option<PathBuf>) -> Result<Exit, CommandError> {
    let supervised = policy.of(std::env::args_os().skip(1).filter(|word| word != SUPERVISE).collect())?;
    supervise_this(&Supervised { problem, ..supervised })
}

fn supervise_this(supervised: &Supervised) -> Result<Exit, CommandError> {
    match supervisor::run(supervised) {
        Ok(0) => Ok(Exit::Fine),
        Ok(code) => Ok(Exit::OfSupervised(code)),
        Err(e) => Err(CommandError::environment(format!(
            "cannot start {}: {e}",
            supervised.program.display()
        ))),
    }
}

/// Watches the supervisor of this process, and starts another one when it dies. Not in a batch job: its script waits for the
/// supervisor, and the job ends with it.
fn watch_supervisor(policy: &SupervisionPolicy) -> Result<(), CommandError> {
    if std::env::var_os("PCLUSTER_JOB").is_some() {
        return Ok(());
    }
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.retain(|word| !policy.again.iter().any(|again| word == again));
    arguments.insert(arguments.len().min(1), SUPERVISE.into());
    supervisor::guard::start_watching(policy.of(arguments)?);
    Ok(())
}

impl SupervisionPolicy {
    fn of(&self, arguments: Vec<OsString>) -> Result<Supervised, CommandError> {
        let program =
            std::env::current_exe().map_err(|e| CommandError::environment(format!("cannot determine the path of this program: {e}")))?;
        Ok(Supervised {
            program,
            arguments,
            restart_arguments: self.again.iter().map(Into::into).collect(),
            retries_refusals: self.retries,
            watches_supervisor: self.watches,
            problem: None,
            is_own_program: true,
        })
    }
}

/// `90`, `90s`, `10m`, `2h`.
pub(crate) fn positive_seconds(text: &str) -> Result<f64, String> {
    match parse_duration(text) {
        Some(seconds) if seconds > 0.0 => Ok(seconds),
        Some(_) => Err("must be greater than 0".into()),
        None => Err("must be a number with an optional unit s, m, h or d: 90s, 10m, 2h".into()),
    }
}
