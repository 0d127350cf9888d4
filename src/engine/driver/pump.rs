//! Keeps the stdout and stderr of workers moving: their pipes hold little, and who writes into a full one waits.
//!
//! What short units write leaves their pipes with their ends. Else a pipe is read when it fills, and what is in it for long; of what runs
//! as far as there is room.
use super::{BEHIND, Driver};
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::process::Wrote;
use std::time::{Duration, Instant};

/// A worker that has written is looked at again after this time,
const AGAIN: Duration = Duration::from_millis(5);
/// ... or this, if the last time its pipe was filling;
const SOON: Duration = Duration::from_millis(1);
/// ... and what a unit has written is read after this time, however little it is.
const LATEST: Duration = Duration::from_millis(50);

impl Driver {
    /// Whether more output of what runs is to be read.
    pub(super) fn has_room(&self) -> bool {
        !self.is_behind() && self.core.has_room()
    }

    fn is_behind(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.socket.is_behind())
    }

    pub(super) fn have_written(&mut self, numbers: &[u64]) {
        let now = Instant::now();
        for number in numbers {
            if let Some(worker) = self.pool.any_mut(*number) {
                worker.wrote.get_or_insert(Wrote { since: now, next: now });
            }
        }
    }

    pub(super) fn next_pump(&self) -> Option<Instant> {
        self.pool.all().filter_map(|worker| Some(worker.wrote?.next)).min()
    }

    /// Looks at the workers that have written.
    pub(super) async fn pump(&mut self) {
        let now = Instant::now();
        let is_due = |wrote: &Wrote| wrote.next <= now;
        let due: Vec<u64> = self
            .pool
            .all()
            .filter(|worker| worker.wrote.as_ref().is_some_and(is_due))
            .map(|worker| worker.number)
            .collect();
        for number in due {
            self.pump_one(number, now).await;
        }
    }

    async fn pump_one(&mut self, number: u64, now: Instant) {
        let key = self.pool.find(number);
        let (has_room, is_behind, runs) = (self.has_room(), self.is_behind(), self.core.running_worker());
        let Some(worker) = self.pool.any_mut(number) else { return };
        let is_filling = worker.stdout.is_filling() || worker.stderr.is_filling();
        let is_empty = worker.unread_output(None) == 0;
        let Some(wrote) = &mut worker.wrote else { return };
        match key {
            // It has run nothing yet, or it was told to end: nobody waits for what it writes.
            None | Some(None) => {
                worker.read_output(None);
                self.rearm_number(number);
            }
            Some(key) if key == runs => {
                wrote.next = now + if worker.writes_much { SOON } else { AGAIN };
                let is_due = is_filling || now >= wrote.since + LATEST;
                if is_empty {
                    worker.writes_much = false;
                    self.rearm_number(number);
                } else if !has_room {
                    wrote.next = now + BEHIND;
                } else if is_due {
                    worker.writes_much = is_filling;
                    worker.look();
                }
            }
            // Nothing runs in it.
            Some(key) => {
                if is_behind {
                    wrote.next = now + BEHIND;
                } else if !is_filling && now < wrote.since + AGAIN {
                    wrote.next = wrote.since + AGAIN;
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

    /// The worker's output was read: when there is more, that is to be known.
    pub(super) fn rearm(&mut self, key: Option<WorkerKey>) {
        if let Some(number) = self.pool.get_mut(key).map(|worker| worker.number) {
            self.rearm_number(number);
        }
    }

    fn rearm_number(&mut self, number: u64) {
        if let Some(worker) = self.pool.any_mut(number) {
            worker.wrote = None;
            for pipe in [&worker.stdout, &worker.stderr] {
                // One that has ended would be reported for ever.
                if !pipe.is_closed() {
                    self.watch.rearm(number, pipe);
                }
            }
        }
    }
}
