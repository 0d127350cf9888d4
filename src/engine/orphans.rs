//! Ends processes that workers and commands started and did not wait for, including those in a session of their own (`setsid`,
//! daemons), when the worker or command ends.
//!
//! The engine adopts orphans (`PR_SET_CHILD_SUBREAPER`, prctl(2)): the kernel makes them children of its main thread. Workers and
//! commands are children of another thread. The owner of an orphan is identified by [`MARK`] in its environment or, if it was
//! forked without exec, by the name of a memory mapping that only the worker and its forks have (`worker/counts.rs`).
use crate::engine::memory::children;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The environment variable that every process of a worker or a command inherits.
pub(super) const MARK: &str = "PCLUSTER_WORKER";
/// How long to wait for the end of killed processes.
const MAX_WAIT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Delay before reaping orphans that end by themselves.
const REAP_DELAY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct OrphanReaper {
    /// A unique id, different also from that of an engine inside of a task.
    engine: String,
    last: AtomicU64,
    /// Workers and commands that have not ended.
    living: Mutex<HashSet<u64>>,
    /// Do not end orphans without a mark: they may belong to the interactive worker.
    spares_unmarked: AtomicBool,
    wanted: Notify,
}

/// Triggers the end of a worker's or command's leftover processes when dropped.
#[derive(Debug)]
pub(crate) struct ProcessOwner {
    pub number: u64,
    reaper: Arc<OrphanReaper>,
    is_swept: bool,
}

impl ProcessOwner {
    /// The value of [`MARK`].
    pub(crate) fn mark(&self) -> String {
        format!("{}.{}", self.reaper.engine, self.number)
    }

    /// Ends the ownership without triggering a sweep: the caller sweeps.
    pub(crate) fn end(mut self) {
        self.is_swept = true;
    }
}

impl Drop for ProcessOwner {
    fn drop(&mut self) {
        self.reaper.lock().remove(&self.number);
        if !self.is_swept {
            self.reaper.wanted.notify_one();
        }
    }
}

impl OrphanReaper {
    /// Makes this process the parent of orphans.
    pub(crate) fn adopt_orphans() {
        if let Err(error) = set_child_subreaper(true) {
            tracing::warn!("cannot adopt orphaned processes; processes that tasks leave behind may keep running: {error}");
        }
    }

    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> Arc<OrphanReaper> {
        let reaper = Arc::new(OrphanReaper {
            engine: uuid::Uuid::new_v4().simple().to_string(),
            last: AtomicU64::new(0),
            living: Mutex::default(),
            spares_unmarked: AtomicBool::new(false),
            wanted: Notify::new(),
        });
        let weak = Arc::downgrade(&reaper);
        tokio::spawn(async move {
            let mut ends = signal(SignalKind::child()).ok();
            loop {
                let Some(reaper) = weak.upgrade() else { return };
                tokio::select! {
                    () = reaper.wanted.notified() => reaper.sweep().await,
                    _ = async { ends.as_mut()?.recv().await }, if ends.is_some() => {
                        tokio::time::sleep(REAP_DELAY).await;
                        reaper.sweep_once();
                    }
                }
            }
        });
        reaper
    }

    pub(crate) fn owner(self: &Arc<Self>) -> ProcessOwner {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(number);
        ProcessOwner {
            number,
            reaper: self.clone(),
            is_swept: false,
        }
    }

    pub(crate) fn spare_unmarked(&self, keeps: bool) {
        self.spares_unmarked.store(keeps, Ordering::SeqCst);
    }

    /// Ends all leftover processes and waits for their end.
    pub(crate) async fn sweep(&self) {
        let until = Instant::now() + MAX_WAIT;
        while self.sweep_once() && Instant::now() < until {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends all remaining processes when the engine exits.
    pub(crate) async fn end_all(&self) {
        self.lock().clear();
        self.spare_unmarked(false);
        self.sweep().await;
    }

    /// Returns whether it killed any process.
    fn sweep_once(&self) -> bool {
        let living = self.lock();
        let mut found = false;
        for pid in children_of_main_thread() {
            if is_ssh(pid) || has_ended(pid) {
                continue;
            }
            let is_left = match self.owner_of(pid) {
                Some(number) => !living.contains(&number),
                None => !self.spares_unmarked.load(Ordering::SeqCst),
            };
            if is_left {
                found = true;
                kill_tree(pid);
            }
        }
        found
    }

    /// The number of the worker or command that started the process.
    fn owner_of(&self, pid: i32) -> Option<u64> {
        let number = |text: &str| {
            let (engine, rest) = text.split_once('.')?;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            rest.get(..digits)?.parse().ok().filter(|_| engine == self.engine)
        };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0).filter_map(|v| std::str::from_utf8(v).ok());
        let marked = variables.find_map(|variable| number(variable.strip_prefix(MARK)?.strip_prefix('=')?));
        marked.or_else(|| {
            let memory = std::fs::read(format!("/proc/{pid}/maps")).ok()?;
            String::from_utf8_lossy(&memory)
                .lines()
                .find_map(|line| number(line.split_once(" /memfd:")?.1))
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn children_of_main_thread() -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/self/task/{}/children", getpid())).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// ssh is the only program that the engine starts from its main thread; its exit is awaited elsewhere.
fn is_ssh(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "ssh\n")
}

/// Reaps an orphan that has ended.
fn has_ended(pid: i32) -> bool {
    !matches!(
        waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)),
        Ok(nix::sys::wait::WaitStatus::StillAlive)
    )
}

fn kill_tree(pid: i32) {
    for child in children(pid) {
        kill_tree(child);
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}
