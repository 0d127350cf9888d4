//! Drains stdout and stderr of workers: their pipes are small, and a writer blocks on a full pipe.
//!
//! The output of short units is read together with their ends. Otherwise a pipe is read when it fills up or when its content is
//! old; output of a running unit only as far as buffer space allows.
use super::{BACKLOG_POLL_INTERVAL, Driver};
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::process::PendingOutput;
use std::time::{Duration, Instant};

/// A worker that has written is polled again after this time,
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// ... or this time, if its pipe was filling up at the last poll;
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// ... and any output of a unit is read after this time.
const MAX_DELAY: Duration = Duration::from_millis(50);

impl Driver {
    /// Returns whether to read more output of the running unit.
    pub(super) fn can_read_output(&self) -> bool {
        !self.is_backlogged() && self.core.can_read_output()
    }

    fn is_backlogged(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.socket.is_behind())
    }

    pub(super) fn mark_written(&mut self, numbers: &[u64]) {
        let now = Instant::now();
        for number in numbers {
            if let Some(worker) = self.pool.any_mut(*number) {
                worker.pending_output.get_or_insert(PendingOutput { since: now, next: now });
            }
        }
    }

    pub(super) fn next_pump(&self) -> Option<Instant> {
        self.pool.all().filter_map(|worker| Some(worker.pending_output?.next)).min()
    }

    /// Polls the workers that have written.
    pub(super) async fn pump(&mut self) {
        let now = Instant::now();
        let is_due = |pending: &PendingOutput| pending.next <= now;
        let due: Vec<u64> = self
            .pool
            .all()
            .filter(|worker| worker.pending_output.as_ref().is_some_and(is_due))
            .map(|worker| worker.number)
            .collect();
        for number in due {
            self.pump_one(number, now).await;
        }
    }

    async fn pump_one(&mut self, number: u64, now: Instant) {
        let key = self.pool.find(number);
        let (can_read_output, is_backlogged, runs) = (self.can_read_output(), self.is_backlogged(), self.core.running_worker());
        let Some(worker) = self.pool.any_mut(number) else { return };
        let is_filling = worker.stdout.is_filling() || worker.stderr.is_filling();
        let is_empty = worker.unread_output(None) == 0;
        let Some(pending) = &mut worker.pending_output else { return };
        match key {
            // It has not run a unit yet, or was asked to exit: discard its output.
            None | Some(None) => {
                worker.read_output(None);
                self.rearm_number(number);
            }
            Some(key) if key == runs => {
                pending.next = now + if worker.fills_fast { BUSY_POLL_INTERVAL } else { POLL_INTERVAL };
                let is_due = is_filling || now >= pending.since + MAX_DELAY;
                if is_empty {
                    worker.fills_fast = false;
                    self.rearm_number(number);
                } else if !can_read_output {
                    pending.next = now + BACKLOG_POLL_INTERVAL;
                } else if is_due {
                    worker.fills_fast = is_filling;
                    worker.sync_output();
                }
            }
            // The worker is idle.
            Some(key) => {
                if is_backlogged {
                    pending.next = now + BACKLOG_POLL_INTERVAL;
                } else if !is_filling && now < pending.since + POLL_INTERVAL {
                    pending.next = pending.since + POLL_INTERVAL;
                } else {
                    self.read_unclaimed(key).await;
                    self.rearm_number(number);
                }
            }
        }
    }

    async fn read_unclaimed(&mut self, key: Option<WorkerKey>) {
        let Some(worker) = self.pool.get_mut(key) else { return };
        let output = worker.read_output(None);
        self.handle(Event::OutputUnclaimed { output }).await;
    }

    /// Watches a worker's pipes again after its output was read.
    pub(super) fn rearm(&mut self, key: Option<WorkerKey>) {
        if let Some(number) = self.pool.get_mut(key).map(|worker| worker.number) {
            self.rearm_number(number);
        }
    }

    fn rearm_number(&mut self, number: u64) {
        if let Some(worker) = self.pool.any_mut(number) {
            worker.pending_output = None;
            for pipe in [&worker.stdout, &worker.stderr] {
                // A closed pipe would be reported forever.
                if !pipe.is_closed() {
                    self.watch.rearm(number, pipe);
                }
            }
        }
    }
}
