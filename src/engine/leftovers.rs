//! What workers and commands leave behind: processes that they started and did not wait for, also those that have gone into a session
//! of their own (`setsid`, daemons). They are ended with whoever started them.
//!
//! The engine takes in orphans (`PR_SET_CHILD_SUBREAPER`, prctl(2)): the kernel makes them children of its main thread. Workers and
//! commands are children of another thread. Whose an orphan is says [`MARK`] in its environment, or, if it was forked and has executed
//! nothing, the name of a piece of memory that only the worker and its forks have (`worker/counts.rs`).
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
pub const MARK: &str = "PCLUSTER_WORKER";
/// Processes that were killed are waited for so long.
const LONGEST: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(1);
/// Orphans that end by themselves are reaped after this time.
const REAP: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Leftovers {
    /// Unlike that of any other engine, also of one within a task.
    engine: String,
    last: AtomicU64,
    /// Workers and commands that have not ended.
    living: Mutex<HashSet<u64>>,
    /// Orphans without a mark may be the interactive worker's.
    keeps_unmarked: AtomicBool,
    wanted: Notify,
}

/// Puts an end to what a worker or a command has left, when it is dropped.
#[derive(Debug)]
pub struct Owner {
    pub number: u64,
    leftovers: Arc<Leftovers>,
    is_swept: bool,
}

impl Owner {
    /// The value of [`MARK`].
    pub fn mark(&self) -> String {
        format!("{}.{}", self.leftovers.engine, self.number)
    }

    /// The caller sweeps.
    pub fn end(mut self) {
        self.is_swept = true;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.leftovers.lock().remove(&self.number);
        if !self.is_swept {
            self.leftovers.wanted.notify_one();
        }
    }
}

impl Leftovers {
    /// From now on the system gives orphans to this process.
    pub fn take_in_orphans() {
        if let Err(error) = set_child_subreaper(true) {
            tracing::warn!("processes that tasks leave behind may live on: {error}");
        }
    }

    /// Must be called within a tokio runtime.
    pub fn new() -> Arc<Leftovers> {
        let leftovers = Arc::new(Leftovers {
            engine: uuid::Uuid::new_v4().simple().to_string(),
            last: AtomicU64::new(0),
            living: Mutex::default(),
            keeps_unmarked: AtomicBool::new(false),
            wanted: Notify::new(),
        });
        let weak = Arc::downgrade(&leftovers);
        tokio::spawn(async move {
            let mut ends = signal(SignalKind::child()).ok();
            loop {
                let Some(leftovers) = weak.upgrade() else { return };
                tokio::select! {
                    () = leftovers.wanted.notified() => leftovers.sweep().await,
                    _ = async { ends.as_mut()?.recv().await }, if ends.is_some() => {
                        tokio::time::sleep(REAP).await;
                        leftovers.sweep_once();
                    }
                }
            }
        });
        leftovers
    }

    pub fn owner(self: &Arc<Self>) -> Owner {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(number);
        Owner {
            number,
            leftovers: self.clone(),
            is_swept: false,
        }
    }

    pub fn keep_unmarked(&self, keeps: bool) {
        self.keeps_unmarked.store(keeps, Ordering::SeqCst);
    }

    /// Ends all that is left of what has ended, and waits for that.
    pub async fn sweep(&self) {
        let until = Instant::now() + LONGEST;
        while self.sweep_once() && Instant::now() < until {
            tokio::time::sleep(STEP).await;
        }
    }

    /// At the engine's end: nothing lives on.
    pub async fn end_all(&self) {
        self.lock().clear();
        self.keep_unmarked(false);
        self.sweep().await;
    }

    /// Whether there was something to kill.
    fn sweep_once(&self) -> bool {
        let living = self.lock();
        let mut found = false;
        for pid in children_of_main_thread() {
            if is_ssh(pid) || has_ended(pid) {
                continue;
            }
            let is_left = match self.owner_of(pid) {
                Some(number) => !living.contains(&number),
                None => !self.keeps_unmarked.load(Ordering::SeqCst),
            };
            if is_left {
                found = true;
                kill_tree(pid);
            }
        }
        found
    }

    /// The number of the worker or command that started it.
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

/// The only program that the engine starts from that thread itself; its end is waited for elsewhere.
fn is_ssh(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "ssh\n")
}

/// An orphan that has ended is forgotten by the system.
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
