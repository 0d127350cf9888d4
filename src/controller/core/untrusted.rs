//! Validates what engines send. Anyone with the engine file can send arbitrary signed messages: very long texts, control
//! characters, times before 1970, outcomes that end no task.
//!
//! Descriptions of an engine are truncated and escaped. An engine that sends malformed results is refused: its tasks are
//! rescheduled, and the failure does not count against them.
use super::event::EventTime;
use crate::model::engine::EngineFacts;
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineUuid, PROTOCOL_VERSION, TaskId, UnixTime, VERSION};
use crate::wire::Message;
use crate::wire::content::engine::{Register, Results};

/// Limits: characters of a host name, version, job or capability; characters of a reason; number of capabilities.
const MAX_NAME: usize = 255;
const MAX_REASON: usize = 1000;
const MAX_CAPABILITIES: usize = 64;
const MAX_GPUS: usize = 1024;
/// More than any node has.
const MAX_CPUS: u32 = 1 << 20;
const MAX_AMOUNT: u64 = 1 << 60;
/// Seconds since 1970: the year 5138.
const LATEST: f64 = 1e11;

/// Escapes control characters and truncates to `max` characters.
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

/// Line separators and characters that change the text direction.
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

/// True for a valid engine uuid. It appears in logs, on screens and in the database.
pub(super) fn is_name(uuid: &str) -> bool {
    (1..=MAX_NAME).contains(&uuid.len()) && uuid.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

pub(super) fn facts(mut facts: EngineFacts) -> EngineFacts {
    for text in [&mut facts.host, &mut facts.version, &mut facts.python, &mut facts.job] {
        *text = line(text, MAX_NAME);
    }
    // An oversized process id would turn negative when used, and address a process group.
    if i32::try_from(facts.pid).is_err() {
        facts.pid = 0;
    }
    facts.capabilities.truncate(MAX_CAPABILITIES);
    facts
        .capabilities
        .iter_mut()
        .for_each(|capability| *capability = line(capability, MAX_NAME));
    facts.ends = facts.ends.filter(|ends| is_time(*ends));
    facts.node.cpus = facts.node.cpus.min(MAX_CPUS);
    facts.node.mem_bytes = facts.node.mem_bytes.min(MAX_AMOUNT);
    facts.node.cores.truncate(MAX_GPUS);
    facts.node.gpus.truncate(MAX_GPUS);
    for gpu in &mut facts.node.gpus {
        (gpu.name, gpu.model) = (line(&gpu.name, MAX_NAME), line(&gpu.model, MAX_NAME));
    }
    let named = std::mem::take(&mut facts.node.named).into_iter().take(MAX_CAPABILITIES);
    facts.node.named = named.map(|(name, count)| (line(&name, MAX_NAME), count.min(MAX_AMOUNT))).collect();
    facts
}

/// Why an engine's message is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("malformed results: {0}")]
    Results(String),
    #[error("malformed results: missing buffers")]
    NoBuffers,
    #[error("invalid result of task {0}: {1} is not a final state")]
    NotFinal(TaskId, TaskState),
    #[error("malformed registration: {0}")]
    Registration(String),
    #[error("invalid uuid: it must have 1 to {MAX_NAME} printable characters")]
    Uuid,
    #[error("its uuid does not match its routing id")]
    ForeignUuid,
    #[error(
        "the controller is pcluster {VERSION} (protocol {PROTOCOL_VERSION}), the engine {version} (protocol {protocol}): start both with \
         the same binary"
    )]
    Protocol { version: String, protocol: u32 },
}

/// Replaces impossible times. Returns an error if this is not an outcome.
fn outcome(task: TaskId, outcome: &mut Outcome, now: EventTime) -> Result<(), Refusal> {
    if !outcome.status.is_done() {
        return Err(Refusal::NotFinal(task, outcome.status));
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

/// The engine's results, if all of them are valid.
pub(super) fn results(message: &Message, now: EventTime) -> Result<Results, Refusal> {
    let results: Results = message.content().map_err(|e| Refusal::Results(reason(&e.to_string())))?;
    let mut results = results.with_buffers(&message.buffers).ok_or(Refusal::NoBuffers)?;
    for result in &mut results.results {
        let task = TaskId::new(result.map, result.index);
        outcome(task, &mut result.outcome, now)?;
    }
    Ok(results)
}

/// The engine's registration, or why it is refused.
pub(super) fn registration(uuid: &EngineUuid, message: &Message) -> Result<Register, Refusal> {
    let mut register: Register = message.content().map_err(|error| {
        let why = Refusal::Registration(reason(&error.to_string()));
        tracing::warn!(uuid = reason(&uuid.0), %why, "engine refused");
        why
    })?;
    if !is_name(&uuid.0) {
        return Err(Refusal::Uuid);
    }
    register.facts = facts(register.facts);
    if register.protocol != PROTOCOL_VERSION {
        return Err(Refusal::Protocol {
            version: register.facts.version,
            protocol: register.protocol,
        });
    }
    if register.facts.uuid != *uuid {
        return Err(Refusal::ForeignUuid);
    }
    Ok(register)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{Gpu, GpuVendor, NodeFacts};

    #[test]
    fn texts_are_one_bounded_line() {
        assert_eq!(line("node-7 Ärger", 20), "node-7 Ärger");
        assert_eq!(line("a\u{1b}[2Jb\nc\u{202e}d\u{9b}", 20), "a\\u{1b}[2Jb\\nc\\u{202e}d\\u{9b}");
        assert_eq!(line(&"x".repeat(10 << 20), 5), "xxxxx…");
    }

    #[test]
    fn engine_facts_are_truncated() {
        let text = "\u{7}".repeat(1 << 20);
        let gpu = Gpu {
            vendor: GpuVendor::Nvidia,
            name: "GPU-1\n".into(),
            model: "x".repeat(10_000),
            numa: None,
        };
        let sent = EngineFacts {
            uuid: "e".into(),
            host: text.clone(),
            pid: u32::MAX,
            version: text.clone(),
            python: text.clone(),
            capabilities: vec![text.clone(); 1000],
            job: text,
            ends: Some(UnixTime(-1.0)),
            node: NodeFacts {
                cpus: u32::MAX,
                cores: vec![Default::default(); 5000],
                mem_bytes: u64::MAX,
                gpus: vec![gpu; 5000],
                named: (0..100).map(|n| (format!("r{n}\u{1b}"), n)).collect(),
            },
        };
        let kept = facts(sent);
        assert_eq!((kept.pid, kept.ends, kept.capabilities.len()), (0, None, 64));
        let longest = kept.capabilities.iter().chain([&kept.host, &kept.version, &kept.python, &kept.job]);
        assert!(longest.map(String::len).max() < Some(2000));
        assert!(!kept.host.contains('\u{7}'));
        let node = &kept.node;
        assert_eq!(
            (node.gpus.len(), node.named.len(), node.gpus[0].name.as_str()),
            (1024, 64, "GPU-1\\n")
        );
        assert_eq!((node.cpus, node.mem_bytes, node.cores.len()), (1 << 20, 1 << 60, node.gpus.len()));
        assert!(node.gpus[0].model.len() < 2000 && node.named.contains_key("r0\\u{1b}"));
        assert!(is_name("7b1c") && !is_name("") && !is_name("a\u{1b}") && !is_name(&"x".repeat(256)));
    }
}
