//! Engines under one `mpiexec`, started from this host: on this host, or on the hosts that
//! `mpiexec` is given (a hosts file, or a batch system's allocation in the current shell). With
//! mpi4py the engines' workers form one MPI world.
//!
//! The only process started is `mpiexec`; the engines are its children or those of its daemons.
//! [`Local`] starts and ends it.
use super::engine::unsupervised_engine_command;
use super::local::Local;
use super::{Capabilities, ControllerLaunch, EnginesLaunch, LaunchError, Launched, Launcher, MemberState, StopReport};
use crate::profile::config::resources::MpiConfig;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const NAME: &str = "mpi";

pub(crate) struct Mpi {
    local: Local,
    config: MpiConfig,
}

impl Mpi {
    pub(crate) fn new(config: &MpiConfig) -> Mpi {
        Mpi {
            local: Local::default(),
            config: config.clone(),
        }
    }
}

/// `mpiexec <arguments> -n <n> <engine>`. Engines are not supervised: a restarted engine could not
/// rejoin the others.
pub(crate) fn command(config: &MpiConfig, launch: &EnginesLaunch) -> Result<(PathBuf, Vec<OsString>), LaunchError> {
    let (program, arguments) = unsupervised_engine_command(launch)?;
    let mut words: Vec<OsString> = config.arguments.iter().map(OsString::from).collect();
    words.extend(["-n".into(), launch.n.to_string().into(), program.into()]);
    words.extend(arguments);
    // An engine's id is its rank.
    words.push("--mpi".into());
    Ok((PathBuf::from(&config.command), words))
}

impl Mpi {
    /// `mpiexec` may use other hosts.
    fn is_remote(&self) -> bool {
        let options = [
            "-f",
            "-host",
            "--host",
            "-hosts",
            "--hosts",
            "-hostfile",
            "--hostfile",
            "-machinefile",
            "--machinefile",
        ];
        let granted = ["SLURM_JOB_ID", "PBS_NODEFILE", "PE_HOSTFILE", "LSB_MCPU_HOSTS"];
        self.config.arguments.iter().any(|word| options.contains(&word.as_str()))
            || granted.iter().any(|name| std::env::var_os(name).is_some())
    }
}

impl Launcher for Mpi {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            remote: self.is_remote(),
            ..Capabilities::default()
        }
    }

    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError> {
        self.local.start_controller(launch)
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        let mut launched = Launched::new(NAME, crate::sys::process::host());
        if launch.n == 0 {
            return Ok(launched);
        }
        let (program, arguments) = command(&self.config, launch)?;
        let log = launch.profile.engine_log(&launch.cluster_id, launch.first);
        let mut process = self.local.start_process(program, arguments, &launch.cwd, log)?;
        process.engines = Some(launch.n);
        launched.processes.push(process);
        Ok(launched)
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        self.local.states(launched)
    }

    fn stop(&self, launched: &Launched, grace: Duration) -> Result<StopReport, LaunchError> {
        self.local.stop(launched, grace)
    }

    fn describe(&self, launched: &Launched) -> String {
        let engines: u32 = launched.members().iter().map(|member| member.engines).sum();
        format!("{engines} engines under {}", self.local.describe(launched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::ProfileDir;
    use crate::profile::config::EngineKind;
    use std::path::Path;

    fn launch(kind: EngineKind) -> EnginesLaunch {
        EnginesLaunch {
            program: "/opt/pcluster".into(),
            profile: ProfileDir::at(Path::new("/home/ada/.ipython/profile_x")),
            cluster_id: String::new(),
            settings: Vec::new(),
            kind,
            n: 3,
            first: 0,
            python: Some("/venv/bin/python".into()),
            ipengine: None,
            cwd: "/".into(),
            log_level: None,
            tag: None,
        }
    }

    fn words(config: &MpiConfig, kind: EngineKind) -> String {
        let (program, arguments) = command(config, &launch(kind)).unwrap();
        let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        format!("{} {}", program.display(), words.join(" "))
    }

    #[test]
    fn all_engines_are_one_command() {
        let config = MpiConfig {
            command: "mpirun".into(),
            arguments: vec!["--hostfile".into(), "hosts".into()],
        };
        insta::assert_snapshot!(words(&config, EngineKind::Pcluster), @r"mpirun --hostfile hosts -n 3 /opt/pcluster engine --file /home/ada/.ipython/profile_x/security/ipcontroller-engine.json --profile-dir /home/ada/.ipython/profile_x --python /venv/bin/python --mpi");
        insta::assert_snapshot!(words(&MpiConfig::default(), EngineKind::Ipengine), @r"mpiexec -n 3 /venv/bin/python -m ipyparallel.engine --profile-dir=/home/ada/.ipython/profile_x --file=/home/ada/.ipython/profile_x/security/ipcontroller-engine.json --mpi");
        assert!(Mpi::new(&config).capabilities().remote);
    }
}
