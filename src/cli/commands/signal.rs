//! `pcluster signal`
use super::counted;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::model::targets::Targets;
use nix::sys::signal::Signal;

/// Send a signal to what the engines run at this moment
///
/// It goes to each engine's Python worker and to the command that it runs; the engine itself goes on. INT interrupts Python code
/// as Ctrl-C does. KILL and the like end the worker: the engine starts a new one, and what was in its namespace is lost.
/// To stop tasks for good, see `pcluster cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster signal INT\n  pcluster signal SIGUSR1 --targets 0,3-5")]
pub struct Args {
    /// A name, with or without SIG in front, or a number
    #[arg(value_name = "SIGNAL", value_parser = signal)]
    signal: Signal,
    /// On which engines: all, or a list such as 0,3,5-8
    #[arg(long, value_name = "ENGINES", default_value = "all")]
    targets: Targets,
}

fn signal(text: &str) -> Result<Signal, String> {
    let word = text.trim().to_ascii_uppercase();
    let number = word.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let named = || word.parse().or_else(|_| format!("SIG{word}").parse()).ok();
    number
        .or_else(named)
        .ok_or_else(|| "write a signal's name or number, for example INT, SIGTERM or 10 (kill -l lists them)".into())
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let client = context.client()?;
    let engines = context.block_on(client.signal_engines(args.targets, args.signal as i32))??;
    if engines.is_empty() {
        return Err(
            CommandError::not_found("no engines are registered, so there is nothing to send a signal to")
                .hint(format!("`pcluster engines{}` shows the engines", context.options())),
        );
    }
    if context.json {
        json::print(&serde_json::json!({"signal": args.signal.as_str(), "engines": engines}))?;
    } else {
        context.say(format!("{} to {}", args.signal, counted(engines.len() as u64, "engine")));
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
