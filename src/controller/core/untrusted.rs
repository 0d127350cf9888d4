//! What engines send, checked where it comes in. Whoever has the engine file may send anything that is well signed: texts without end or
//! with control characters, times before 1970, outcomes that are no end.
//!
//! What only describes an engine is bounded and escaped. An engine whose results cannot be understood is refused: its tasks go
//! elsewhere, and the fault is not charged to them.
use super::{Core, EventTime};
use crate::model::engine::EngineFacts;
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineUuid, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{self, Results};

/// Characters of a host's name, a version, a job; of a reason; of a capability; capabilities.
const MAX_NAME: usize = 255;
const MAX_REASON: usize = 1000;
const MAX_CAPABILITIES: usize = 64;
/// Names of engines that are refused: more than these have not been at it.
const MAX_REFUSED: usize = 10_000;
/// Seconds since 1970: the year 5138.
const LATEST: f64 = 1e11;

/// One line without control characters, of so many characters at most.
pub(super) fn line(text: &str, max: usize) -> String {
    let mut escaped = String::new();
    let mut characters = text.chars();
    for c in characters.by_ref().take(max) {
        match c.is_control() || is_invisible(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    if characters.next().is_some() {
        escaped.push('…');
    }
    escaped
}

/// Line separators, and what changes the direction of what follows.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn reason(text: &str) -> String {
    line(text, MAX_REASON)
}

fn is_time(time: UnixTime) -> bool {
    (0.0..LATEST).contains(&time.0)
}

pub(super) fn time(time: UnixTime, now: EventTime) -> UnixTime {
    if is_time(time) { time } else { now.unix }
}

/// The name under which an engine connects stands in logs, on screens and in the database.
pub(super) fn is_name(uuid: &str) -> bool {
    (1..=MAX_NAME).contains(&uuid.len()) && uuid.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

pub(super) fn facts(mut facts: EngineFacts) -> EngineFacts {
    for text in [&mut facts.host, &mut facts.version, &mut facts.python, &mut facts.job] {
        *text = line(text, MAX_NAME);
    }
    // A process id that does not fit would be negative where it is used, and name a group.
    if i32::try_from(facts.pid).is_err() {
        facts.pid = 0;
    }
    facts.capabilities.truncate(MAX_CAPABILITIES);
    facts
        .capabilities
        .iter_mut()
        .for_each(|capability| *capability = line(capability, MAX_NAME));
    facts.ends = facts.ends.filter(|ends| is_time(*ends));
    facts
}

/// Times that cannot be are replaced. An error says why there is no outcome.
pub(super) fn outcome(outcome: &mut Outcome, now: EventTime) -> Result<(), String> {
    if !outcome.status.is_done() {
        return Err(format!("{} is no end of a task", outcome.status));
    }
    if outcome.status != TaskState::Ok && outcome.error.is_none() {
        outcome.error = Outcome::failure(outcome.status, "UnknownError", "the engine gave no reason", now.unix, now.unix).error;
    }
    outcome.ended = time(outcome.ended, now);
    if !is_time(outcome.started) || outcome.started > outcome.ended {
        outcome.started = outcome.ended;
    }
    Ok(())
}

impl Core {
    /// The engine's results, if every one of them is one.
    pub(super) fn checked_results(&self, message: &Message) -> Result<Results, String> {
        let results: Results = message
            .content()
            .map_err(|e| line(&format!("its results cannot be read: {e}"), MAX_REASON))?;
        let mut results = results.with_buffers(&message.buffers).ok_or("its results lack their buffers")?;
        for result in &mut results.results {
            let task = TaskId::new(result.map, result.index);
            outcome(&mut result.outcome, self.now).map_err(|why| format!("its result of task {task} is none: {why}"))?;
        }
        Ok(results)
    }

    /// Ends the work with an engine that breaks the protocol. Its tasks are not what it died of.
    pub(super) fn refuse_engine(&mut self, uuid: &EngineUuid, why: &str) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, tasks) = (engine.id, engine.tasks.iter().map(|(t, r)| (*t, *r)).collect::<Vec<_>>());
        tracing::error!(engine = %id, %uuid, host = engine.facts.host, why, "an engine is refused: it breaks the protocol");
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(uuid.clone(), why.to_string());
        }
        self.engines.change(uuid, |e| e.leaving = true);
        for (task, _) in &tasks {
            if let Some(in_flight) = self.maps.get_mut(&task.map).and_then(|m| m.in_flight.get_mut(&task.index)) {
                in_flight.begun = false;
            }
        }
        self.tasks_lost(uuid, id, tasks, why);
        self.engine_gone(uuid, why);
        self.send_refusal(uuid, why);
    }

    pub(super) fn send_refusal(&mut self, uuid: &EngineUuid, why: &str) {
        let content = engine::Registered {
            status: "error".into(),
            evalue: why.into(),
            ..Default::default()
        };
        self.send_to_engine(uuid, engine::REGISTERED, &content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_one_bounded_line() {
        assert_eq!(line("node-7 Ärger", 20), "node-7 Ärger");
        assert_eq!(line("a\u{1b}[2Jb\nc\u{202e}d\u{9b}", 20), "a\\u{1b}[2Jb\\nc\\u{202e}d\\u{9b}");
        assert_eq!(line(&"x".repeat(10 << 20), 5), "xxxxx…");
    }

    #[test]
    fn what_describes_an_engine_is_bounded() {
        let text = "\u{7}".repeat(1 << 20);
        let told = EngineFacts {
            uuid: "e".into(),
            host: text.clone(),
            pid: u32::MAX,
            version: text.clone(),
            python: text.clone(),
            capabilities: vec![text.clone(); 1000],
            job: text,
            ends: Some(UnixTime(-1.0)),
        };
        let kept = facts(told);
        assert_eq!((kept.pid, kept.ends, kept.capabilities.len()), (0, None, 64));
        let longest = kept.capabilities.iter().chain([&kept.host, &kept.version, &kept.python, &kept.job]);
        assert!(longest.map(String::len).max() < Some(2000));
        assert!(!kept.host.contains('\u{7}'));
        assert!(is_name("7b1c") && !is_name("") && !is_name("a\u{1b}") && !is_name(&"x".repeat(256)));
    }
}
