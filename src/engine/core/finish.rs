//! Units that end: by a result, by a command's exit, by the death of the worker.
use super::event::{Effect, Now, RequestReply};
use super::output::{Streams, TextBuffer};
use super::stop::{AfterRecall, StopReason};
use super::unit::{
    CommandEnd, PeakMemory, Request, Unit, WorkerKey, WorkerResult, command_outcome, long_value, out_of_memory, worker_outcome,
};
use super::{Closing, Core, Dispatched, RunningUnit, UnitOutput};
use crate::model::UnixTime;
use crate::model::task::{Cause, Outcome, TaskError, TaskState};
use crate::wire::content::engine::{Held, TaskResult};
use bytes::Bytes;
use std::sync::Arc;

impl Core {
    pub(super) fn push_outcome(&mut self, now: Now, held: Held, outcome: Outcome) {
        let Held { map, index, run } = held;
        self.outbox.push(now, TaskResult { map, index, run, outcome });
    }

    /// Ends a unit with an error of the engine, without running it.
    pub(super) fn fail(&mut self, now: Now, unit: Unit, ename: &str, evalue: String, effects: &mut Vec<Effect>) {
        match unit {
            Unit::Task { held, .. } => {
                self.push_outcome(now, held, Outcome::failure(TaskState::Error, ename, evalue, now.unix, now.unix));
                self.forget(held.map, effects);
            }
            Unit::Request(request) => {
                effects.push(Effect::Reply {
                    request,
                    started: now.unix,
                    reply: RequestReply::Failed {
                        ename: ename.into(),
                        evalue,
                    },
                });
            }
        }
    }

    pub(super) fn reply_aborted(&mut self, now: Now, request: Arc<Request>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Reply {
            request,
            started: now.unix,
            reply: RequestReply::Aborted,
        });
    }

    pub(super) fn unit_ended(
        &mut self,
        now: Now,
        ticket: u32,
        (started, ended): (UnixTime, UnixTime),
        result: WorkerResult,
        peak_memory: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        if self.dispatched.front().is_none_or(|dispatched| dispatched.ticket != ticket) {
            return;
        }
        let (Some(Dispatched { unit, .. }), Some(current)) = (self.dispatched.pop_front(), self.current.take()) else {
            return;
        };
        self.workers.record_run();
        self.set_current(now, ended);
        if let Some((ticket, reason)) = self.stop_next
            && self.dispatched.front().is_some_and(|dispatched| dispatched.ticket == ticket)
        {
            self.stop_next = None;
            self.begin_stop(now, reason, effects);
        }
        match unit {
            Unit::Task { held, .. } => {
                self.record_duration(held.map, ended.since(started));
                let long = long_value(&result);
                let mut outcome = worker_outcome(result, started, ended);
                let peak = peak_memory.map_or(PeakMemory::Unknown, PeakMemory::Measured);
                outcome.peak_memory = peak.with(current.measured_memory());
                self.end_task(now, held, (outcome, long), current, effects);
            }
            Unit::Request(request) => {
                let reply = match result {
                    WorkerResult::Reply { meta, content, buffers } => {
                        #[derive(serde::Deserialize, Default)]
                        #[serde(default)]
                        struct Meta {
                            status: String,
                            ename: String,
                        }
                        let Meta { status, ename } = serde_json::from_slice(&meta).unwrap_or_default();
                        RequestReply::Completed {
                            status,
                            ename,
                            content,
                            buffers,
                        }
                    }
                    _ => RequestReply::Failed {
                        ename: "WorkerError".into(),
                        evalue: "the worker sent an invalid reply".into(),
                    },
                };
                let failed = !matches!(&reply, RequestReply::Completed { status, .. } if status == "ok");
                self.end_request(request.clone(), started, reply, current, effects);
                if failed && request.stops_others {
                    self.recall_then(now, AfterRecall::AbortExecutions, effects);
                }
            }
        }
    }

    pub(super) fn command_ended(&mut self, now: Now, end: CommandEnd, effects: &mut Vec<Effect>) {
        let (Some(unit), Some(current)) = (self.command.take(), self.current.take()) else {
            return;
        };
        if let Some(held) = unit.held() {
            let peak = end.peak.with(current.measured_memory());
            let mut outcome = command_outcome(end);
            outcome.peak_memory = peak;
            self.end_task(now, held, (outcome, None), current, effects);
        }
    }

    /// Ends a task, which may have a long value. If it was being stopped, the reason determines the outcome.
    fn end_task(
        &mut self,
        now: Now,
        held: Held,
        (mut outcome, long): (Outcome, Option<Bytes>),
        current: RunningUnit,
        effects: &mut Vec<Effect>,
    ) {
        match current.stop.map(|stop| stop.reason) {
            None => {}
            Some(StopReason::Dropped) => {
                self.forget(held.map, effects);
                return;
            }
            Some(StopReason::Cancelled) => stopped(&mut outcome, TaskState::Aborted, "TaskCancelled", "cancelled while running".into()),
            Some(StopReason::TimedOut { seconds }) => {
                let evalue = format!("timed out after {seconds} s");
                stopped(&mut outcome, TaskState::Timeout, "TaskTimeout", evalue);
            }
            Some(StopReason::OverMemory { limit, used }) => {
                let evalue = format!("killed: it used {} of memory; its limit is {}", size(used), size(limit));
                stopped(&mut outcome, TaskState::Lost, "MemoryLimit", evalue);
                outcome.crashed = true;
                outcome.cause = Some(Cause::MemoryLimit);
                outcome.peak_memory = outcome.peak_memory.max(Some(used));
            }
            Some(StopReason::Leaving) if outcome.status == TaskState::Ok => {}
            Some(StopReason::Leaving) => {
                let evalue = "its engine was stopped while the task was running".into();
                stopped(&mut outcome, TaskState::Lost, "EngineStopped", evalue);
                outcome.crashed = true;
                outcome.cause = Some(Cause::EngineLost);
            }
        }
        let mut closing = Closing {
            held,
            started: current.started,
            outcome,
            streams: match current.output {
                UnitOutput::Buffered(streams) => streams,
                UnitOutput::Forwarded(_) => Streams::default(),
            },
        };
        if let Some(value) = long.filter(|_| closing.outcome.value_size.is_some()) {
            closing.streams.push_value(value);
        }
        if closing.streams.is_short() {
            self.close(now, closing, effects);
        } else {
            self.closing.push(closing);
            self.send_parts(effects);
        }
    }

    /// Queues the result with the rest of the output; a long value has been recorded already.
    pub(super) fn close(&mut self, now: Now, closing: Closing, effects: &mut Vec<Effect>) {
        let Closing {
            held,
            mut outcome,
            streams,
            ..
        } = closing;
        [outcome.stdout, outcome.stderr] = streams.finish();
        self.push_outcome(now, held, outcome);
        self.forget(held.map, effects);
    }

    fn end_request(
        &mut self,
        request: Arc<Request>,
        started: UnixTime,
        reply: RequestReply,
        current: RunningUnit,
        effects: &mut Vec<Effect>,
    ) {
        let mut announced = current.announced;
        let texts = match current.output {
            UnitOutput::Forwarded(texts) => texts.map(TextBuffer::finish),
            UnitOutput::Buffered(_) => Default::default(),
        };
        for (stderr, text) in [false, true].into_iter().zip(texts) {
            if !text.is_empty() {
                let request = request.clone();
                if !std::mem::replace(&mut announced, true) {
                    effects.push(Effect::RequestStarted(request.clone()));
                }
                effects.push(Effect::Stream { request, stderr, text });
            }
        }
        effects.push(Effect::Reply { request, started, reply });
    }

    pub(super) fn worker_exited(
        &mut self,
        now: Now,
        worker: WorkerKey,
        unread: usize,
        (how, killed, oom_killed): (String, bool, bool),
        stderr_tail: String,
        effects: &mut Vec<Effect>,
    ) {
        if !self.workers.is_active(worker) || self.dispatched.is_empty() {
            self.record_worker_exit(now, worker, (&how, killed), (0, 0), effects);
            return;
        }
        self.stop_next = None;
        let units = self.dispatched.len();
        let begun = units.saturating_sub(unread);
        let mut current = self.current.take();
        for _ in 0..begun {
            let Some(Dispatched { unit, .. }) = self.dispatched.pop_front() else {
                break;
            };
            let since = current.as_ref().map_or(now.unix, |current| current.started);
            let evalue = match stderr_tail.trim() {
                "" => how.clone(),
                tail => format!("{how}; its last output: {tail}"),
            };
            let own = current.take().unwrap_or_else(|| self.placeholder_current(now, &unit));
            match unit {
                Unit::Task { held, .. } => {
                    let (ename, evalue) = match oom_killed {
                        true => out_of_memory(&evalue),
                        false => ("WorkerDied", evalue),
                    };
                    let mut outcome = Outcome::failure(TaskState::Lost, ename, evalue, since, now.unix);
                    outcome.crashed = true;
                    outcome.cause = oom_killed.then_some(Cause::MemoryCgroup);
                    outcome.peak_memory = PeakMemory::Unknown.with(own.measured_memory());
                    self.end_task(now, held, (outcome, None), own, effects);
                }
                Unit::Request(request) => {
                    // ipyparallel's name for the death of an engine.
                    let reply = RequestReply::Failed {
                        ename: "EngineError".into(),
                        evalue,
                    };
                    self.end_request(request, since, reply, own, effects);
                }
            }
        }
        while let Some(Dispatched { unit, .. }) = self.dispatched.pop_back() {
            self.queue.push_front(unit);
        }
        self.record_worker_exit(now, worker, (&how, killed), (units, begun), effects);
    }

    fn placeholder_current(&self, now: Now, unit: &Unit) -> RunningUnit {
        RunningUnit {
            since: now.instant,
            started: now.unix,
            output: UnitOutput::of(unit),
            announced: false,
            next_poll: now.instant,
            timeout: None,
            memory: None,
            stop: None,
        }
    }
}

impl RunningUnit {
    /// 0 if it was not measured.
    fn measured_memory(&self) -> u64 {
        self.memory.map_or(0, |memory| memory.peak)
    }
}

/// `1.5 GiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut number, mut unit) = (bytes as f64 / 1024.0, 0);
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1024.0, unit + 1);
    }
    let text = format!("{number:.2}");
    format!("{} {}", text.trim_end_matches('0').trim_end_matches('.'), UNITS[unit])
}

/// Turns the outcome into that of a stopped task; the task's own traceback is preserved.
fn stopped(outcome: &mut Outcome, status: TaskState, ename: &str, evalue: String) {
    let traceback = outcome.error.take().map_or_else(String::new, |error| error.traceback);
    outcome.status = status;
    outcome.crashed = false;
    outcome.cause = None;
    outcome.value = None;
    outcome.pickled = None;
    outcome.value_size = None;
    outcome.error = Some(TaskError {
        ename: ename.into(),
        evalue,
        traceback,
    });
}
