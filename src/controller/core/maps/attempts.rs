//! The attempts of a task: what a failed one is charged to, and what the next one asks for.
use super::in_flight::InFlight;
use super::map::Map;
use crate::model::definition::MapOptions;
use crate::model::growth::Growth;
use crate::model::memory::Memory;
use crate::model::resources::Request;
use crate::model::task::{Ask, Cause, Outcome, TaskState};

/// What an attempt's failure is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Error,
    Crash,
    /// Not the task's: it was lost before it began.
    Engine,
    /// It had too little memory, and the next attempt gets more.
    Memory,
    /// It had too little time, and the next attempt gets more.
    Time,
}

impl Fault {
    /// Of an attempt that an engine has reported; None if there is nothing to repeat.
    pub(crate) fn of(outcome: &Outcome, options: &MapOptions) -> Option<Fault> {
        let by_cause = match outcome.cause() {
            Some(cause) if cause.is_out_of_memory() => options.retry_mem.map(|_| Fault::Memory),
            Some(Cause::Timeout) => options.retry_time.map(|_| Fault::Time),
            _ => None,
        };
        match outcome.status {
            TaskState::Ok | TaskState::Aborted => None,
            _ if by_cause.is_some() => by_cause,
            _ if outcome.crashed => Some(Fault::Crash),
            _ => Some(Fault::Error),
        }
    }
}

/// Whether a task is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    Again,
    Never,
    /// It is not, because it cannot ask for more than this attempt did: the reason.
    Exhausted(String),
}

impl Map {
    /// Charges a failed attempt. `max_memory`: of the largest node that could run such a task, if known.
    pub(crate) fn retry(&self, task: &mut InFlight, fault: Fault, max_memory: impl FnOnce(&Request) -> Option<u64>) -> Retry {
        let may_repeat = !task.is_cancelled() && self.targets().is_none();
        let options = self.options();
        let (used, ask) = (&mut task.used, &mut task.ask);
        let (used, max) = match fault {
            Fault::Error => (&mut used.errors, options.retries),
            Fault::Crash | Fault::Engine => (&mut used.crashes, options.max_crashes),
            Fault::Memory | Fault::Time if !may_repeat => return Retry::Never,
            Fault::Memory => return more_memory(options, &mut used.memory, ask, max_memory),
            Fault::Time => return more_time(options, &mut used.time, ask),
        };
        *used += u32::from(fault != Fault::Engine);
        match *used <= max && may_repeat {
            true => Retry::Again,
            false => Retry::Never,
        }
    }
}

fn more_memory(options: &MapOptions, used: &mut u32, ask: &mut Ask, max_memory: impl FnOnce(&Request) -> Option<u64>) -> Retry {
    let (Some(growth), Some(asked)) = (options.retry_mem, ask.mem_bytes.or(options.mem_bytes)) else {
        return Retry::Never;
    };
    let last = Memory { bytes: asked };
    if *used >= Growth::MAX_RETRIES {
        return Retry::Exhausted(format!(
            "the last of {} attempts with more memory asked for {last}",
            Growth::MAX_RETRIES
        ));
    }
    // Nodes that are still to come may have more.
    let of_nodes = options.request().filter(|_| !options.wait_for_resources);
    let of_nodes = of_nodes.as_ref().and_then(max_memory).unwrap_or(u64::MAX);
    let max = options.max_mem_bytes.unwrap_or(u64::MAX);
    match growth.next(asked as f64, Some(max.min(of_nodes) as f64)) {
        Some(next) => {
            // In whole MiB, but not more than there is.
            let next = Memory::of_mib((next as u64).div_ceil(1 << 20)).bytes.min(max).min(of_nodes);
            *used += 1;
            ask.mem_bytes = Some(next);
            Retry::Again
        }
        None if max <= of_nodes => Retry::Exhausted(format!("the last attempt asked for {last}, which is all that --max-mem allows")),
        None => Retry::Exhausted(format!("the last attempt asked for {last}, and no node has more")),
    }
}

fn more_time(options: &MapOptions, used: &mut u32, ask: &mut Ask) -> Retry {
    let (Some(growth), Some(asked)) = (options.retry_time, ask.limit_s().or(options.timeout_s)) else {
        return Retry::Never;
    };
    if *used >= Growth::MAX_RETRIES {
        return Retry::Exhausted(format!("the last of {} attempts with more time had {asked} s", Growth::MAX_RETRIES));
    }
    match growth.next(asked, options.max_time_s) {
        Some(next) => {
            *used += 1;
            ask.limit_ms = Some((next * 1000.0).round() as u64);
            Retry::Again
        }
        None => Retry::Exhausted(format!("the last attempt had {asked} s, which is all that --max-time allows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> MapOptions {
        MapOptions {
            mem_bytes: Some(8 << 30),
            retry_mem: Some("x1.5".parse().unwrap()),
            timeout_s: Some(10.0),
            retry_time: Some("x2".parse().unwrap()),
            ..MapOptions::default()
        }
    }

    fn memory_of_attempts(options: &MapOptions, most: Option<u64>) -> (Vec<u64>, String) {
        let (mut used, mut ask, mut asked) = (0, Ask::default(), Vec::new());
        loop {
            match more_memory(options, &mut used, &mut ask, |_| most) {
                Retry::Again => asked.push(ask.mem_bytes.unwrap() >> 20),
                Retry::Exhausted(why) => return (asked, why),
                Retry::Never => panic!("without a reason"),
            }
        }
    }

    #[test]
    fn each_attempt_asks_for_more_memory_up_to_the_maximum() {
        let max = MapOptions {
            max_mem_bytes: Some(20 << 30),
            ..options()
        };
        let (asked, why) = memory_of_attempts(&max, Some(64 << 30));
        assert_eq!(asked, [12 << 10, 18 << 10, 20 << 10]);
        assert_eq!(why, "the last attempt asked for 20G, which is all that --max-mem allows");
        let (asked, why) = memory_of_attempts(&max, Some(16 << 30));
        assert_eq!(asked, [12 << 10, 16 << 10]);
        assert_eq!(why, "the last attempt asked for 16G, and no node has more");
        let (asked, why) = memory_of_attempts(&options(), None);
        assert_eq!(asked.len() as u32, Growth::MAX_RETRIES);
        assert_eq!(why, format!("the last of 10 attempts with more memory asked for {}M", asked[9]));
        let waits = MapOptions {
            wait_for_resources: true,
            ..max
        };
        assert_eq!(memory_of_attempts(&waits, Some(16 << 30)).0, [12 << 10, 18 << 10, 20 << 10]);
    }

    #[test]
    fn each_attempt_gets_more_time_up_to_the_maximum() {
        let max = MapOptions {
            max_time_s: Some(50.0),
            ..options()
        };
        let (mut used, mut ask, mut had) = (0, Ask::default(), Vec::new());
        let why = loop {
            match more_time(&max, &mut used, &mut ask) {
                Retry::Again => had.push(ask.limit_s().unwrap()),
                other => break other,
            }
        };
        assert_eq!(had, [20.0, 40.0, 50.0]);
        let reason = "the last attempt had 50 s, which is all that --max-time allows";
        assert_eq!(why, Retry::Exhausted(reason.into()));
    }

    #[test]
    fn without_the_options_memory_and_time_are_charged_as_before() {
        let at = crate::model::UnixTime(1.0);
        let mut memory = Outcome::failure(TaskState::Lost, "MemoryLimit", "", at, at);
        (memory.crashed, memory.cause) = (true, Some(Cause::MemoryLimit));
        let timeout = Outcome::failure(TaskState::Timeout, "TaskTimeout", "", at, at);
        let of = |outcome: &Outcome, options: &MapOptions| Fault::of(outcome, options);
        assert_eq!(of(&memory, &options()), Some(Fault::Memory));
        assert_eq!(of(&timeout, &options()), Some(Fault::Time));
        assert_eq!(of(&memory, &MapOptions::default()), Some(Fault::Crash));
        assert_eq!(of(&timeout, &MapOptions::default()), Some(Fault::Error));
        memory.status = TaskState::Aborted;
        assert_eq!(of(&memory, &options()), None);
    }
}
