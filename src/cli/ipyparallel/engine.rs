//! The options of `ipengine`.
use super::common::Common;
use super::{Refusal, Trait};
use std::path::PathBuf;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct EngineTraits {
    pub common: Common,
    pub file: Option<PathBuf>,
    /// The name of the connection file in the profile's `security`.
    pub file_name: Option<String>,
    /// The timeout for the connection file.
    pub file_timeout_ms: Option<u64>,
    /// The timeout for registration.
    pub timeout_ms: Option<u64>,
    pub id: Option<u32>,
    /// The controller's host, overriding the connection file.
    pub location: Option<String>,
    pub mpi: bool,
    /// Traits for IPython's shell in the worker: `--InteractiveShell.colors=nocolor`.
    pub shell: Vec<String>,
}

/// Run in the shell under `--mpi`.
const MPI_INIT: &str = "from mpi4py import MPI\nmpi_rank = MPI.COMM_WORLD.Get_rank()\nmpi_size = MPI.COMM_WORLD.Get_size()\n";

impl EngineTraits {
    pub(crate) fn of(traits: &[Trait]) -> Result<EngineTraits, Refusal> {
        let mut words = EngineTraits::default();
        let mut mpi_init = MPI_INIT.to_string();
        for option in traits {
            match (option.class.as_str(), option.name.as_str()) {
                ("IPEngine" | "EngineFactory" | "IPEngineApp", "init_mpi") => mpi_init = option.value.clone(),
                ("IPEngine" | "EngineFactory" | "IPEngineApp", name) => words.take(option, name)?,
                _ if words.common.take(option)? => {}
                // Traits of IPython's shell are passed to the worker.
                _ => words.shell.push(option.spelled()),
            }
        }
        if words.mpi && !mpi_init.is_empty() {
            words.run_at_start(&mpi_init);
        }
        Ok(words)
    }

    fn take(&mut self, option: &Trait, name: &str) -> Result<(), Refusal> {
        let refused = |why: &str| Err(format!("{}: {why}", option.spelled()));
        match name {
            "url_file" => self.file = option.text().map(PathBuf::from),
            "url_file_name" => self.file_name = option.text(),
            "wait_for_url_file" => self.file_timeout_ms = Some(option.seconds()?),
            "timeout" => self.timeout_ms = Some(option.seconds()?),
            "id" => {
                let id = option.value.parse();
                self.id = Some(id.map_err(|_| format!("{}: {:?} is not an engine's id", option.spelled(), option.value))?);
            }
            "location" => self.location = option.text(),
            "use_mpi" => self.mpi = option.truth()?,
            "startup_command" => self.run_at_start(&option.value),
            "startup_script" => self.shell.push(format!("--InteractiveShellApp.exec_files={}", option.value)),
            "registration_url" => return refused("the controller's addresses are in the engine's connection file: --file=FILE"),
            "sshserver" | "sshkey" | "paramiko" if option.value.is_empty() => {}
            "sshserver" => return refused("the controller sets the ssh server of its engines: ipcontroller's --enginessh"),
            "curve_secretkey" | "curve_publickey" | "curve_serverkey" => {
                return refused("the controller's key is in the connection file, and each engine generates its own; omit it");
            }
            "enable_nanny" => self.common.ignore(option, "the engine supervises its Python process itself"),
            "max_heartbeat_misses" => self.common.ignore(
                option,
                "the controller sets this timeout: controller.engine_reconnect_timeout_ms in the profile",
            ),
            "sshkey" | "paramiko" => self.common.ignore(option, "set keys in the configuration of OpenSSH"),
            "mpi_registration_delay" => self.common.ignore(option, "engines can register concurrently"),
            _ if self.common.take(option)? => {}
            _ => self
                .common
                .ignore(option, &format!("pcluster's engine has no counterpart of IPEngine.{name}")),
        }
        Ok(())
    }

    fn run_at_start(&mut self, code: &str) {
        self.shell.push(format!("--InteractiveShellApp.exec_lines={code}"));
    }
}

/// The rank of this process among those that one `mpiexec` or `srun` started, if several.
pub(crate) fn mpi_rank(variable: impl Fn(&str) -> Option<String>) -> Option<u32> {
    let number = |name: &str| variable(name)?.trim().parse::<u32>().ok();
    // Open MPI; MPICH, Intel MPI and others with Hydra; srun with PMI.
    let pairs = [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("PMIX_RANK", "PMIX_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ];
    pairs
        .iter()
        .find_map(|(rank, size)| number(rank).filter(|_| number(size).is_some_and(|n| n > 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(traits: &[&str]) -> Result<EngineTraits, Refusal> {
        let traits: Vec<Trait> = traits.iter().map(|t| Trait::parse(t).unwrap()).collect();
        EngineTraits::of(&traits)
    }

    #[test]
    fn traits_become_engine_options() {
        let words = words(&[
            "IPEngine.url_file=/x/engine.json",
            "EngineFactory.timeout=7.5",
            "IPEngine.id=3",
            "IPEngine.startup_command=import os",
            "InteractiveShell.colors=nocolor",
            "IPEngine.use_mpi=True",
            "BaseParallelApplication.work_dir=/tmp",
            "IPEngine.enable_nanny=False",
        ])
        .unwrap();
        assert_eq!(words.file, Some("/x/engine.json".into()));
        assert_eq!((words.timeout_ms, words.id, words.mpi), (Some(7500), Some(3), true));
        assert_eq!(words.common.work_dir, Some("/tmp".into()));
        assert_eq!(
            words.shell,
            [
                "--InteractiveShellApp.exec_lines=import os".to_string(),
                "--InteractiveShell.colors=nocolor".into(),
                format!("--InteractiveShellApp.exec_lines={MPI_INIT}"),
            ]
        );
        assert_eq!(
            words.common.notes,
            ["--IPEngine.enable_nanny=False is ignored: the engine supervises its Python process itself"]
        );
    }

    #[test]
    fn unsupported_traits_are_rejected() {
        for option in [
            "IPEngine.registration_url=tcp://h:1",
            "IPEngine.sshserver=h",
            "IPEngine.curve_secretkey=k",
            "IPEngine.id=x",
        ] {
            assert!(words(&[option]).is_err(), "{option}");
        }
    }

    #[test]
    fn a_rank_requires_several_processes() {
        let environment =
            |pairs: &'static [(&str, &str)]| move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        assert_eq!(
            mpi_rank(environment(&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")])),
            Some(2)
        );
        assert_eq!(mpi_rank(environment(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")])), None);
        assert_eq!(mpi_rank(environment(&[])), None);
    }
}
