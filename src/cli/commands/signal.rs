//! `pcluster signal`
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::model::targets::Targets;
use nix::sys::signal::Signal;

/// Send a signal to the running task of each engine
///
/// Signals each engine's Python worker and the command that it runs; the engine itself continues. INT interrupts Python code, like
/// Ctrl-C. KILL and similar signals end the worker: the engine starts a new one, and its namespace is lost. To stop tasks
/// permanently, use `pcluster cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster signal INT\n  pcluster signal SIGUSR1 --targets 0,3-5")]
pub(crate) struct Args {
    /// Send this signal: a name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", value_parser = signal)]
    signal: Signal,
    /// Signal these engines: all, or a list such as 0,3,5-8
    #[arg(long, value_name = "ENGINES", default_value = "all")]
    targets: Targets,
}

fn signal(text: &str) -> Result<Signal, String> {
    let word = text.trim().to_ascii_uppercase();
    let number = word.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let named = || word.parse().or_else(|_| format!("SIG{word}").parse()).ok();
    number
        .or_else(named)
        .ok_or_else(|| "must be the name or number of a signal, for example INT, SIGTERM or 10 (see kill -l)".into())
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let client = context.client()?;
    let engines = context.block_on(client.signal_engines(args.targets, args.signal as i32))??;
    if engines.is_empty() {
        return Err(
            CommandError::not_found("no engines are registered").hint(format!("`pcluster engines{}` shows the engines", context.options()))
        );
    }
    if context.json {
        json::print(&serde_json::json!({"signal": args.signal.as_str(), "engines": engines}))?;
    } else {
        context.note(format!("{} to {}", args.signal, counted(engines.len() as u64, "engine")));
    }
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for text in ["INT", "int", "SIGINT", "2", " sigint "] {
            assert_eq!(signal(text), Ok(Signal::SIGINT), "{text}");
        }
        for text in ["", "0", "-2", "999", "SIG", "HUMBUG"] {
            assert!(signal(text).unwrap_err().contains("kill -l"), "{text}");
        }
    }
}
