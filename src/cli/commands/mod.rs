//! One file per command, in the order of the help.
pub mod apply;
pub mod cancel;
pub mod clean;
pub mod completions;
pub mod connect;
pub mod connection;
pub mod controller;
pub mod disconnect;
pub mod doctor;
pub mod engine;
pub mod engines;
pub mod exec;
pub mod gather;
pub mod help_markdown;
pub mod install;
pub mod keeper;
pub mod list;
pub mod logs;
pub mod map;
pub mod profile;
pub mod pull;
pub mod purge;
pub mod push;
pub mod remote_exec;
pub mod restart;
pub mod resubmit;
pub mod results;
pub mod run;
pub mod scale;
pub mod scatter;
pub mod script;
pub mod signal;
pub mod start;
pub mod status;
pub mod stop;
pub mod template;
pub mod tunnel;
pub mod version;
pub mod wait;

use super::{CommandError, Context, Exit};
use crate::launchers::supervisor::{self, Supervised};
use std::ffi::OsString;
use std::path::PathBuf;

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident => $module:ident),* $(,)?) => {
        #[derive(Debug, clap::Subcommand)]
        pub enum Command {
            $($(#[$attribute])* $variant($module::Args)),*
        }
        pub fn dispatch(command: Command, context: &Context) -> Result<Exit, CommandError> {
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
    Resubmit => resubmit,
    Cancel => cancel,
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
    Keeper => keeper,
    #[command(hide = true)]
    Tunnel => tunnel,
    #[command(hide = true)]
    HelpMarkdown => help_markdown,
}

/// `1 task`, `3 tasks`.
pub fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// `--set key=value`.
pub fn setting(text: &str) -> Result<(String, String), String> {
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
