//! Reports what units produce while they run: their start, their output, what requests publish.
use super::event::{Effect, Now, Parent, Published};
use super::output::unclaimed;
use super::stop::StopReason;
use super::{Core, Unit, UnitOutput, WorkerKey};
use crate::model::UnixTime;
use crate::wire::content::engine::{Held, OutputRecorded, Part, Progress};
use bytes::Bytes;

/// Maximum number of output parts in one message.
const PARTS: usize = 2;
/// No task starts while this many bytes of values are in transit.
const VALUES_WINDOW: usize = 64 << 20;

impl Core {
    /// Output of the running unit.
    pub(super) fn output_arrived(&mut self, output: [Bytes; 2], effects: &mut Vec<Effect>) {
        if output.iter().all(Bytes::is_empty) {
            return;
        }
        self.announce_start(effects);
        let Some(current) = &mut self.current else { return };
        let is_dropped = current.stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Dropped);
        match &mut current.output {
            // The controller has dropped the task.
            UnitOutput::Buffered(_) if is_dropped => {}
            UnitOutput::Buffered(streams) => {
                streams.push(output);
                if !streams.is_short() {
                    self.send_parts(effects);
                }
            }
            UnitOutput::Forwarded(texts) => {
                let Some(Unit::Request(request)) = self.dispatched.front().map(|dispatched| &dispatched.unit) else {
                    return;
                };
                for ((text, bytes), stderr) in texts.iter_mut().zip(output).zip([false, true]) {
                    text.push(&bytes);
                    let text = text.take();
                    if !text.is_empty() {
                        let request = request.clone();
                        effects.push(Effect::Stream { request, stderr, text });
                    }
                }
            }
        }
    }

    /// Sends the unsent parts of long outputs.
    pub(super) fn send_parts(&mut self, effects: &mut Vec<Effect>) {
        if !self.registered {
            return;
        }
        for closing in &mut self.closing {
            send(closing.held, closing.started, closing.streams.take_parts(true), effects);
        }
        let unit = self.command.as_ref().or(self.dispatched.front().map(|dispatched| &dispatched.unit));
        if let (Some(current), Some(held)) = (&mut self.current, unit.and_then(Unit::held))
            && let UnitOutput::Buffered(streams) = &mut current.output
            && !streams.is_short()
        {
            let parts = streams.take_parts(false);
            current.announced |= !parts.is_empty();
            send(held, current.started, parts, effects);
        }
    }

    pub(super) fn output_recorded(&mut self, now: Now, recorded: OutputRecorded, effects: &mut Vec<Effect>) {
        let OutputRecorded {
            task,
            stdout,
            stderr,
            value,
        } = recorded;
        if let Some(at) = self.closing.iter().position(|closing| closing.held == task) {
            let streams = &mut self.closing[at].streams;
            streams.recorded([stdout, stderr, value]);
            if streams.is_short() {
                let closing = self.closing.remove(at);
                self.close(now, closing, effects);
            }
            self.send_parts(effects);
            return;
        }
        let unit = self.command.as_ref().or(self.dispatched.front().map(|dispatched| &dispatched.unit));
        if let (Some(current), Some(held)) = (&mut self.current, unit.and_then(Unit::held))
            && held == task
            && let UnitOutput::Buffered(streams) = &mut current.output
        {
            streams.recorded([stdout, stderr, value]);
            if !streams.is_short() {
                self.send_parts(effects);
            }
        }
    }

    /// Returns whether to start more tasks: a map whose values are produced faster than they are recorded is throttled.
    pub(super) fn has_value_capacity(&self) -> bool {
        self.closing.iter().map(|closing| closing.streams.value_bytes()).sum::<usize>() < VALUES_WINDOW
    }

    /// A worker has published a message after this output.
    pub(super) fn published(&mut self, worker: WorkerKey, output: [Bytes; 2], published: Published, effects: &mut Vec<Effect>) {
        let is_active = self.workers.is_active(worker);
        match is_active {
            true => self.output_arrived(output, effects),
            false => unclaimed(output, effects),
        }
        if is_active || published.parent != Parent::Running {
            self.publish(published, effects);
        }
    }

    fn publish(&mut self, published: Published, effects: &mut Vec<Effect>) {
        let parent = match &published.parent {
            Parent::Running => {
                self.announce_start(effects);
                match self.dispatched.front().map(|dispatched| &dispatched.unit) {
                    Some(Unit::Request(request)) => Some(request.message.header_json.clone()),
                    _ => return,
                }
            }
            Parent::Ended(header) => Some(header.clone()),
            Parent::None => None,
        };
        effects.push(Effect::Publish { parent, published });
    }

    /// Announces the start of a request once, when it produces output or has run for a while. For a request that ends immediately
    /// the reply is enough; each message costs the client more than it costs the engine.
    pub(super) fn announce_start(&mut self, effects: &mut Vec<Effect>) {
        if let (Some(Unit::Request(request)), Some(current)) =
            (self.dispatched.front().map(|dispatched| &dispatched.unit), &mut self.current)
            && !std::mem::replace(&mut current.announced, true)
        {
            effects.push(Effect::RequestStarted(request.clone()));
        }
    }

    pub(super) fn report_progress(&mut self, effects: &mut Vec<Effect>) {
        let unit = self.command.as_ref().or(self.dispatched.front().map(|dispatched| &dispatched.unit));
        let (Some(current), Some(task)) = (&mut self.current, unit.and_then(Unit::held)) else {
            return;
        };
        if !self.registered || current.stop.is_some() {
            return;
        }
        let parts = match &mut current.output {
            UnitOutput::Buffered(streams) => streams.take_parts(true),
            UnitOutput::Forwarded(_) => return,
        };
        if !std::mem::replace(&mut current.announced, true) && parts.is_empty() {
            effects.push(progress(task, current.started, parts));
        } else {
            send(task, current.started, parts, effects);
        }
    }
}

fn send(task: Held, started: UnixTime, parts: Vec<(Part, Bytes)>, effects: &mut Vec<Effect>) {
    let mut parts = parts.into_iter().peekable();
    while parts.peek().is_some() {
        effects.push(progress(task, started, parts.by_ref().take(PARTS).collect()));
    }
}

fn progress(task: Held, started: UnixTime, parts: Vec<(Part, Bytes)>) -> Effect {
    let (parts, bytes) = parts.into_iter().unzip();
    let started = started.0;
    Effect::SendProgress(Progress { task, started, parts }, bytes)
}
