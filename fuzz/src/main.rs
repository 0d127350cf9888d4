//! Fuzzing on a stable toolchain: known good inputs are changed at random, by a seed, and given to what reads foreign bytes.
//! A panic or an endless loop is a failure; its input is written to `fuzz/failures/`, and `--replay FILE` runs it again.
//!
//!     cargo xtask fuzz --seconds 60 [--seed 7] [--target core]
//!     cargo xtask fuzz --replay fuzz/failures/core-1f2e3d
//!
//! Parts: [`targets`] (what is fuzzed), [`controller`] and [`engine`] (their cores as targets), [`mutate`]; good inputs are in `fuzz/corpus/<target>/`.
#![allow(clippy::panic, reason = "a target that finds something panics")]
mod controller;
mod engine;
mod mutate;
mod targets;

use mutate::Dice;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use targets::{TARGETS, Target};

/// An input that takes longer is a failure.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Arguments {
    seconds: u64,
    seed: u64,
    target: Option<String>,
    replay: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut found = Arguments {
        seconds: 20,
        seed: u64::try_from(since.as_nanos() % 1_000_000_007).unwrap_or_default(),
        target: None,
        replay: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{word} {value}: {e}"));
        match word.as_str() {
            "--seconds" => found.seconds = number()?,
            "--seed" => found.seed = number()?,
            "--target" => found.target = Some(value),
            "--replay" => found.replay = Some(PathBuf::from(value)),
            _ => return Err(format!("{word} is none of --seconds, --seed, --target, --replay")),
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let done = match &arguments.replay {
        Some(file) => replay(file),
        None => fuzz(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs one input again; its panic is shown as it is.
fn replay(file: &Path) -> Result<bool, String> {
    let input = fs::read(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let target = TARGETS
        .iter()
        .find(|target| name.starts_with(target.name))
        .ok_or(format!("{name} begins with no target's name"))?;
    let passed = catch_unwind(|| (target.run)(&input)).is_ok();
    println!("{}: {}", target.name, if passed { "passed" } else { "failed" });
    Ok(passed)
}

fn corpus(target: &Target) -> Result<Vec<Vec<u8>>, String> {
    let folder = folder("corpus").join(target.name);
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).map_err(failed)?.flatten().map(|e| e.path()).collect();
    paths.sort();
    let mut corpus = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).map_err(failed)?;
        // A file of many small inputs has one on each line.
        match path.extension().is_some_and(|e| e == "lines") {
            true => corpus.extend(bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec)),
            false => corpus.push(bytes),
        }
    }
    if corpus.is_empty() {
        return Err(format!("{} is empty", folder.display()));
    }
    Ok(corpus)
}

/// What runs now, for the one who watches that it ends.
type Current = Arc<Mutex<(Instant, &'static str, Vec<u8>)>>;

fn fuzz(arguments: &Arguments) -> Result<bool, String> {
    let chosen: Vec<&'static Target> = TARGETS
        .iter()
        .filter(|t| arguments.target.as_deref().is_none_or(|name| name == t.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        return Err(format!("there is no such target; there are {}", names.join(", ")));
    }
    println!("seed {}", arguments.seed);
    // A panic is reported below, with its input.
    let message = Arc::new(Mutex::new(String::new()));
    let hook_message = message.clone();
    std::panic::set_hook(Box::new(move |info| *lock(&hook_message) = info.to_string()));
    let current: Current = Arc::new(Mutex::new((Instant::now(), "", Vec::new())));
    watch(current.clone());
    let (mut failures, share) = (
        0u64,
        Duration::from_secs(arguments.seconds) / u32::try_from(chosen.len()).unwrap_or(1),
    );
    for target in chosen {
        let corpus = corpus(target)?;
        let mut dice = Dice::new(arguments.seed);
        let (until, mut runs) = (Instant::now() + share, 0u64);
        let mut failed = 0u64;
        // What is good is run as it is first.
        let mut unchanged = corpus.iter();
        while Instant::now() < until {
            let input = unchanged.next().cloned().unwrap_or_else(|| mutate::mutated(&corpus, &mut dice));
            *lock(&current) = (Instant::now(), target.name, input.clone());
            runs += 1;
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_ok() {
                continue;
            }
            let path = keep(target.name, &input)?;
            println!(
                "{}: {}\n  replay: cargo xtask fuzz --replay {}",
                target.name,
                lock(&message),
                path.display()
            );
            failed += 1;
            if failed >= 5 {
                break;
            }
        }
        println!("{:12} {runs:>9} inputs, {failed} failed", target.name);
        failures += failed;
    }
    Ok(failures == 0)
}

fn keep(target: &str, input: &[u8]) -> Result<PathBuf, String> {
    let folder = folder("failures");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let path = folder.join(format!("{target}-{:08x}", mutate::digest(input)));
    fs::write(&path, input).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(path)
}

/// Ends the process when an input does not come to an end.
fn watch(current: Current) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let (began, target, input) = &*lock(&current);
            if !target.is_empty() && began.elapsed() > TIMEOUT {
                let kept = keep(target, input).map_or_else(|why| why, |path| path.display().to_string());
                println!("{target}: no end after {} s: {kept}", TIMEOUT.as_secs());
                // The thread that would return the code does not come back.
                std::process::abort();
            }
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
