//! Starts and ends engines on remote hosts over ssh. Each is a daemon in its own session and does not need the connection that
//! started it. Another process ends it later over a new connection, identified by host name, process id and start time.
//!
//! Parts: [`plan`] (which host gets which engines), [`start`] (one host's engines), [`processes`] (what runs on a host, and its end),
//! [`reachability`] (whether a host reaches the controller), [`tunnel`] (for hosts that do not).
mod error;
mod plan;
mod processes;
pub(crate) mod reachability;
mod start;
pub(crate) mod tunnel;

use super::{
    Capabilities, ControllerLaunch, EnginesLaunch, LaunchError, Launched, Launcher, LogError, MemberState, Process, RemoteHosts,
    StopReport, logs,
};
use crate::profile::config::resources::SshConfig;
use crate::ssh::tunnel::process as tunnels;
use crate::sys::process;
use start::EngineRoute;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub(crate) const NAME: &str = "ssh";

/// The minimum interval between queries of a host's processes,
const QUERY_INTERVAL: Duration = Duration::from_secs(3);
/// ... and their timeout, including the login.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct OverSsh {
    config: SshConfig,
    cached: Mutex<Option<CachedStates>>,
}

/// The states at the last query.
struct CachedStates {
    when: Instant,
    of: Vec<Process>,
    states: Vec<MemberState>,
}

impl OverSsh {
    pub(crate) fn new(config: &SshConfig) -> OverSsh {
        OverSsh {
            config: config.clone(),
            cached: Mutex::new(None),
        }
    }

    /// Runs `work` with each host's processes and their indices, for some hosts in parallel. The results are in the order of `launched`.
    fn on_each<T, F>(&self, launched: &Launched, work: impl Fn(String, Vec<(usize, Process)>) -> F) -> Result<Vec<T>, LaunchError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let hosts = by_host(launched);
        self.in_parallel(hosts.into_iter().map(|(host, processes)| work(host, processes)).collect())
    }

    /// Runs some of these in parallel; returns their results in order.
    fn in_parallel<T, F>(&self, works: Vec<F>) -> Result<Vec<T>, LaunchError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.config.parallelism.max(1)));
        let all = async move {
            let mut running = JoinSet::new();
            for (at, work) in works.into_iter().enumerate() {
                let permits = permits.clone();
                running.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    (at, work.await)
                });
            }
            let mut done = running.join_all().await;
            done.sort_by_key(|(at, _)| *at);
            done.into_iter().map(|(_, result)| result).collect()
        };
        // The caller may be in a runtime, which must not be entered twice.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map(|runtime| runtime.block_on(all)).map_err(|e| e.to_string())
            });
            thread.join().unwrap_or_else(|_| Err("its thread has failed".into()))
        })
        .map_err(|why| LaunchError::NoRuntime { why })
    }
}

impl Launcher for OverSsh {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            remote: true,
            provides_tunnel: !self.config.needs_network(),
            tunnel_only: self.config.only_tunnels(),
            has_cached_state: true,
        }
    }

    fn remote_hosts(&self) -> Option<&dyn RemoteHosts> {
        Some(self)
    }

    fn start_controller(&self, _: &ControllerLaunch) -> Result<Launched, LaunchError> {
        Err(LaunchError::OnlyEngines { launcher: NAME })
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        let mut launched = Launched::new(NAME, process::host());
        if launch.n == 0 {
            return Ok(launched);
        }
        let plan = plan::plan(&self.config.hosts, launch.n, launch.first)?;
        let launch = Arc::new(launch.clone());
        let works = plan.into_iter().map(|(host, numbers)| {
            let (host, launch, mode) = (host.clone(), launch.clone(), self.config.tunnel_of(host));
            async move { (host.host.clone(), start::start(&host, mode, &launch, &numbers).await) }
        });
        let mut started: Vec<(u32, Process)> = Vec::new();
        let mut direct = Vec::new();
        for (host, result) in self.in_parallel(works.collect())? {
            match result {
                Ok(of_host) => {
                    started.extend(of_host.engines);
                    match of_host.route {
                        EngineRoute::Given => {}
                        EngineRoute::Direct(_) => direct.push(host),
                        EngineRoute::Tunnel(why) => launched
                            .notes
                            .push(format!("{host}: its engines reach the controller through a reverse tunnel ({why})")),
                    }
                }
                Err(why) => launched.problem.push(format!("{host} has no engines: {why}")),
            }
        }
        if !direct.is_empty() {
            launched
                .notes
                .insert(0, format!("{}: the controller is reached directly", direct.join(", ")));
        }
        started.sort_by_key(|(number, _)| *number);
        launched.processes = started.into_iter().map(|(_, process)| process).collect();
        let count = launched.processes.len() as u32;
        if count < self.config.min_engines.unwrap_or(launch.n).min(launch.n) {
            let mut problems = std::mem::take(&mut launched.problem);
            if let Err(e) = self.stop(&launched, Duration::from_secs(5)) {
                problems.push(e.to_string());
            }
            return Err(LaunchError::Hosts {
                started: count,
                wanted: launch.n,
                problems,
            });
        }
        Ok(launched)
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = cached
            .as_ref()
            .filter(|last| last.when.elapsed() < QUERY_INTERVAL && last.of == launched.processes)
        {
            return last.states.clone();
        }
        let answers = self.on_each(launched, |host, processes| async move {
            let states = match tokio::time::timeout(QUERY_TIMEOUT, processes::states(&host, &processes)).await {
                Ok(Ok(states)) => states,
                Ok(Err(e)) => vec![MemberState::unknown(first_line(&e.to_string())); processes.len()],
                Err(_) => {
                    vec![MemberState::unknown(format!("{host} did not answer within {} s", QUERY_TIMEOUT.as_secs())); processes.len()]
                }
            };
            let indices = processes.into_iter().map(|(index, _)| index);
            indices.zip(states).collect::<Vec<_>>()
        });
        let mut states = vec![MemberState::unknown(""); launched.len()];
        match answers {
            Ok(answers) => {
                for (index, state) in answers.into_iter().flatten() {
                    states[index] = state;
                }
            }
            Err(e) => states.fill(MemberState::unknown(e.to_string())),
        }
        *cached = Some(CachedStates {
            when: Instant::now(),
            of: launched.processes.clone(),
            states: states.clone(),
        });
        states
    }

    fn stop(&self, launched: &Launched, grace: Duration) -> Result<StopReport, LaunchError> {
        let answers = self.on_each(launched, move |host, processes| async move {
            let ended = processes::end(&host, &processes, grace).await;
            (host, ended)
        })?;
        // Also of hosts that did not answer, whose tunnels are of no use.
        launched.tunnels().iter().for_each(|file| tunnels::end(file));
        let (mut all, mut problems) = (StopReport::default(), Vec::new());
        for (host, ended) in answers {
            match ended {
                Ok(ended) => all += ended,
                Err(error) => problems.push(format!("{host}: {error}")),
            }
        }
        match problems.is_empty() {
            true => Ok(all),
            false => Err(LaunchError::OverSsh { doing: "end", problems }),
        }
    }

    fn log_tail(&self, launched: &Launched, index: usize, lines: usize) -> String {
        let Some(process) = launched.processes.get(index).cloned() else {
            return String::new();
        };
        if process.directory.is_none() {
            return logs::tail(&process.log, process.log_from, lines);
        }
        let end = self.in_parallel(vec![async move {
            let end = tokio::time::timeout(QUERY_TIMEOUT, processes::log_tail(&process, lines)).await;
            end.ok().and_then(Result::ok).unwrap_or_default()
        }]);
        end.ok().and_then(|mut ends| ends.pop()).unwrap_or_default()
    }

    fn describe(&self, launched: &Launched) -> String {
        let hosts: Vec<String> = by_host(launched)
            .into_iter()
            .map(|(host, processes)| format!("{} on {host}", processes.len()))
            .collect();
        format!("engines: {}", hosts.join(", "))
    }
}

impl RemoteHosts for OverSsh {
    fn capacity(&self) -> Option<u32> {
        self.config.engines()
    }

    fn min_engines(&self) -> Option<u32> {
        self.config.min_engines
    }

    fn restart_tunnels(&self, launched: &Launched, program: &Path) -> Vec<String> {
        let restart = |file: &PathBuf| match tunnels::restart(program, file) {
            Ok(true) => Some("a reverse tunnel had exited and was restarted".to_string()),
            Ok(false) => None,
            Err(error) => Some(error.to_string()),
        };
        launched.tunnels().iter().filter_map(restart).collect()
    }

    fn logs(&self, launched: &Launched, indices: &[usize], lines: usize) -> Vec<(usize, Result<String, LogError>)> {
        let mut hosts = by_host(launched);
        for (_, processes) in &mut hosts {
            processes.retain(|(index, process)| process.directory.is_some() && indices.contains(index));
        }
        hosts.retain(|(_, processes)| !processes.is_empty());
        let works = hosts.into_iter().map(|(host, processes)| async move {
            let read = match tokio::time::timeout(QUERY_TIMEOUT, processes::log_ends(&host, &processes, lines)).await {
                Ok(read) => read.map_err(|e| LogError::Host { why: e.to_string(), host }),
                Err(_) => Err(LogError::Silent {
                    host,
                    seconds: QUERY_TIMEOUT.as_secs(),
                }),
            };
            let of = |(index, _): (usize, Process)| {
                let text = read.as_ref().map(|read| read.get(&index).cloned().unwrap_or_default());
                (index, text.map_err(LogError::clone))
            };
            processes.into_iter().map(of).collect::<Vec<_>>()
        });
        let mut logs: Vec<_> = match self.in_parallel(works.collect()) {
            Ok(logs) => logs.into_iter().flatten().collect(),
            Err(e) => {
                let error = LogError::Launcher(e.to_string());
                indices.iter().map(|index| (*index, Err(error.clone()))).collect()
            }
        };
        logs.sort_by_key(|(index, _)| *index);
        logs
    }

    fn indices_of(&self, launched: &Launched, engines: &[(String, u32)]) -> Vec<usize> {
        let mut works = Vec::new();
        for (host, processes) in by_host(launched) {
            let node = processes.iter().find_map(|(_, process)| process.node.clone());
            let of_it = engines.iter().filter(|(name, _)| Some(name) == node.as_ref());
            let pids: Vec<u32> = of_it.map(|(_, pid)| *pid).collect();
            if pids.is_empty() {
                continue;
            }
            works.push(async move {
                let answer = tokio::time::timeout(QUERY_TIMEOUT, processes::parents(&host, &pids)).await;
                let parents = answer.ok().and_then(Result::ok).unwrap_or_default();
                let is_it = |pid: u32| pids.contains(&pid) || parents.contains(&pid);
                let indices = processes.into_iter().filter(|(_, process)| is_it(process.id.pid));
                indices.map(|(index, _)| index).collect::<Vec<_>>()
            });
        }
        self.in_parallel(works).unwrap_or_default().into_iter().flatten().collect()
    }
}

/// The hosts, as the user named them, each with its processes and their indices.
fn by_host(launched: &Launched) -> Vec<(String, Vec<(usize, Process)>)> {
    let mut hosts: Vec<(String, Vec<(usize, Process)>)> = Vec::new();
    for (index, process) in launched.processes.iter().enumerate() {
        let host = process.on.as_ref().unwrap_or(&launched.host);
        match hosts.iter_mut().find(|(name, _)| name == host) {
            Some((_, processes)) => processes.push((index, process.clone())),
            None => hosts.push((host.clone(), vec![(index, process.clone())])),
        }
    }
    hosts
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}
