//! The interface of all launchers.
use super::{ControllerLaunch, EnginesLaunch, LaunchError, Launched, LogError, MemberState, StopReport, logs};
use std::path::Path;
use std::time::Duration;

/// Starts a controller or engines. Calls may take seconds (a batch system, a remote host): never
/// make them from an async task.
pub(crate) trait Launcher: Send + Sync {
    fn name(&self) -> &str;
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    /// Operations on hosts that only this launcher can reach; none if it has no such hosts.
    fn remote_hosts(&self) -> Option<&dyn RemoteHosts> {
        None
    }
    /// Starts one controller.
    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError>;
    /// Starts `launch.n` engines: all of them, or none and returns an error. [`super::python`] has checks
    /// to make before.
    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError>;
    /// Finds the engines of a launch with this [`EnginesLaunch::tag`] that the system knows, although nothing is on record.
    fn find_engines(&self, _launch: &EnginesLaunch) -> FoundEngines {
        FoundEngines::None
    }
    /// The state of each member, by index. If it cannot be determined, [`super::Stage::Unknown`] with the
    /// reason.
    fn states(&self, launched: &Launched) -> Vec<MemberState>;
    /// Ends only these members ([`Launched::only`] selects some): sends SIGTERM, then SIGKILL after
    /// `grace`, also to their remaining children; or cancels the jobs. Waits for the end if it is
    /// near; reports the actions taken.
    fn stop(&self, launched: &Launched, grace: Duration) -> Result<StopReport, LaunchError>;
    /// The last lines of this member's output, without blank ones; empty if there are none.
    fn log_tail(&self, launched: &Launched, index: usize, lines: usize) -> String {
        launched
            .members()
            .get(index)
            .map_or_else(String::new, |m| logs::tail(&m.log, m.log_from, lines))
    }
    /// A one-line description for display.
    fn describe(&self, launched: &Launched) -> String;
}

/// The result of [`Launcher::find_engines`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FoundEngines {
    Launched(Box<Launched>),
    /// The system answered, and has none.
    None,
    /// The system did not answer.
    Unknown,
}

/// The properties of a launcher as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Its processes may run on other hosts: the controller must listen on an address that they can
    /// reach.
    pub remote: bool,
    /// It can tunnel connections for engines that cannot reach the controller: the controller need
    /// not listen on the network.
    pub provides_tunnel: bool,
    /// All of its engines use a tunnel; none connects to the controller directly.
    pub tunnel_only: bool,
    /// States may be some seconds old, because the system is polled rarely.
    pub has_cached_state: bool,
}

/// Engines on explicitly named hosts (`--host`). Each host has its own Python, and may have its own
/// copy of the connection file.
pub(crate) trait RemoteHosts: Send + Sync {
    /// The number of engines that fit on the hosts; none if unlimited.
    fn capacity(&self) -> Option<u32>;
    /// The minimum number of engines for a start to succeed.
    fn min_engines(&self) -> Option<u32>;
    /// Restarts tunnels that ended while their members still run. `program` is pcluster. Returns
    /// messages for the user.
    fn restart_tunnels(&self, launched: &Launched, program: &Path) -> Vec<String>;
    /// The last lines of these members' logs on their hosts, by index, or the reason why they are
    /// not available.
    fn logs(&self, launched: &Launched, indices: &[usize], lines: usize) -> Vec<(usize, Result<String, LogError>)>;
    /// The indices of the engines with these process ids; each is given as the host's own name and
    /// the pid on that host. Omits processes that cannot be matched.
    fn indices_of(&self, launched: &Launched, processes: &[(String, u32)]) -> Vec<usize>;
}
