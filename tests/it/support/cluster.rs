//! Clusters for tests, with real processes.
use super::command::Ended;
use super::home::Home;
use super::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::ops::Deref;
use std::sync::OnceLock;

/// A home with a started cluster.
pub struct Cluster {
    home: Home,
}

impl Deref for Cluster {
    type Target = Home;
    fn deref(&self) -> &Home {
        &self.home
    }
}

/// A shared cluster of two engines, for tests that do not stop it or its engines and do not assume map numbers. It ends with the test
/// process.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(2))
}

impl Cluster {
    pub fn start(engines: u32) -> Cluster {
        Cluster::start_in(Home::new(), engines, &[])
    }

    /// In a prepared home, with more arguments.
    pub fn start_in(home: Home, engines: u32, more: &[&str]) -> Cluster {
        let cluster = Cluster { home };
        cluster.start_again(engines, more).ok();
        cluster
    }

    /// For a cluster that was started in another way.
    pub fn running_in(home: Home) -> Cluster {
        Cluster { home }
    }

    pub fn start_again(&self, engines: u32, more: &[&str]) -> Ended {
        let n = engines.to_string();
        self.run(&[&["start", "-n", &n], more].concat())
    }

    /// `pcluster … --json`, parsed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?} --json: {e}\n{text}"))
    }

    /// The process ids of the engines that are registered, by engine id.
    pub fn engine_pids(&self) -> Vec<u32> {
        let engines = self.json(&["engines"]);
        let engines = engines["engines"].as_array().unwrap();
        engines
            .iter()
            .map(|engine| u32::try_from(engine["pid"].as_u64().unwrap()).unwrap())
            .collect()
    }

    /// The supervisors, the controller's first.
    pub fn supervisors(&self) -> Vec<u32> {
        let state = std::fs::read(self.profile().join("pid/pcluster.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        let launches = std::iter::once(&state["controller"]).chain(state["engines"].as_array().unwrap());
        launches
            .flat_map(|launched| launched["processes"].as_array().unwrap())
            .map(|process| u32::try_from(process["pid"].as_u64().unwrap()).unwrap())
            .collect()
    }

    /// Kills the controller and its supervisor.
    pub fn kill_controller_and_supervisor(&self) {
        kill_both(self.supervisors()[0], self.controller_pid());
    }

    pub fn controller_pid(&self) -> u32 {
        let file = self.profile().join("security/ipcontroller-client.json");
        let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        u32::try_from(file["pcluster"]["pid"].as_u64().unwrap()).unwrap()
    }
}

/// Kills a supervisor and its child. Stops the child first, so that it cannot replace its supervisor.
pub fn kill_both(supervisor: u32, supervised: u32) {
    signal(supervised, Signal::SIGSTOP);
    for pid in [supervisor, supervised] {
        signal(pid, Signal::SIGKILL);
        wait_for_exit(pid);
    }
}

/// The supervisor that has replaced the first one, which led their session.
pub fn successor_of(first: u32, before: &[u32]) -> u32 {
    wait_until(&format!("a supervisor in the place of {first}"), || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let stat = read("stat");
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
            let in_session = fields.first().is_some_and(|state| *state != "Z") && fields.get(3) == Some(&first.to_string().as_str());
            in_session && !before.contains(pid) && read("cmdline").split('\0').any(|word| word == "--supervise")
        })
    })
}

/// Sends a signal to a process that the test started (or had started).
pub fn signal(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Waits until there is no such process any more.
pub fn wait_for_exit(pid: u32) {
    let path = format!("/proc/{pid}/stat");
    wait_until(&format!("the end of process {pid}"), || {
        // A zombie has ended.
        let stat = std::fs::read_to_string(&path).unwrap_or_default();
        let ended = stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        ended.then_some(())
    });
}
