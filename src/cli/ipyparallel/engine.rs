//! What `ipengine` is told.
use super::common::Common;
use super::{Refusal, Trait};
use std::path::PathBuf;

#[derive(Debug, Default, PartialEq)]
pub struct EngineWords {
    pub common: Common,
    pub file: Option<PathBuf>,
    /// The connection file's name, in the profile's `security`.
    pub file_name: Option<String>,
    /// How long to wait for the connection file.
    pub file_timeout_ms: Option<u64>,
    /// How long to try to register.
    pub timeout_ms: Option<u64>,
    pub id: Option<u32>,
    /// The controller's host, over what the connection file says.
    pub location: Option<String>,
    pub mpi: bool,
    /// For IPython's shell in the worker, as traitlets reads them: `--InteractiveShell.colors=nocolor`.
    pub shell: Vec<String>,
}

/// Run in the shell under `--mpi`.
const MPI_INIT: &str = "from mpi4py import MPI\nmpi_rank = MPI.COMM_WORLD.Get_rank()\nmpi_size = MPI.COMM_WORLD.Get_size()\n";

impl EngineWords {
    pub fn of(traits: &[Trait]) -> Result<EngineWords, Refusal> {
        let mut words = EngineWords::default();
        let mut mpi_init = MPI_INIT.to_string();
        for told in traits {
            match (told.class.as_str(), told.name.as_str()) {
                ("IPEngine" | "EngineFactory" | "IPEngineApp", "init_mpi") => mpi_init = told.value.clone(),
                ("IPEngine" | "EngineFactory" | "IPEngineApp", name) => words.take(told, name)?,
                _ if words.common.take(told)? => {}
                // Of IPython's shell: its own parts read it, in the worker.
                _ => words.shell.push(told.spelled()),
            }
        }
        if words.mpi && !mpi_init.is_empty() {
            words.run_at_start(&mpi_init);
        }
        Ok(words)
    }

    fn take(&mut self, told: &Trait, name: &str) -> Result<(), Refusal> {
        let refused = |why: &str| Err(format!("{}: {why}", told.spelled()));
        match name {
            "url_file" => self.file = told.text().map(PathBuf::from),
            "url_file_name" => self.file_name = told.text(),
            "wait_for_url_file" => self.file_timeout_ms = Some(told.seconds()?),
            "timeout" => self.timeout_ms = Some(told.seconds()?),
            "id" => {
                let id = told.value.parse();
                self.id = Some(id.map_err(|_| format!("{}: {:?} is not an engine's id", told.spelled(), told.value))?);
            }
            "location" => self.location = told.text(),
            "use_mpi" => self.mpi = told.truth()?,
            "startup_command" => self.run_at_start(&told.value),
            "startup_script" => self.shell.push(format!("--InteractiveShellApp.exec_files={}", told.value)),
            "registration_url" => return refused("the controller's addresses are in the engine's connection file: --file=FILE"),
            "sshserver" | "sshkey" | "paramiko" if told.value.is_empty() => {}
            "sshserver" => return refused("the controller names the server that its engines go through: ipcontroller's --enginessh"),
            "curve_secretkey" | "curve_publickey" | "curve_serverkey" => {
                return refused("the controller's key is in the connection file, and an engine's own is made anew for each; leave it out");
            }
            "enable_nanny" => self.common.pass_over(told, "the engine watches over its Python itself"),
            "max_heartbeat_misses" => self.common.pass_over(
                told,
                "the controller says how long it may be silent: controller.engine_reconnect_timeout_ms in the profile",
            ),
            "sshkey" | "paramiko" => self
                .common
                .pass_over(told, "OpenSSH's configuration says which key is for which host"),
            "mpi_registration_delay" => self.common.pass_over(told, "engines need not register one after the other"),
            _ if self.common.take(told)? => {}
            _ => self
                .common
                .pass_over(told, &format!("pcluster's engine has nothing that answers to IPEngine.{name}")),
        }
        Ok(())
    }

    fn run_at_start(&mut self, code: &str) {
        self.shell.push(format!("--InteractiveShellApp.exec_lines={code}"));
    }
}

/// This process's number among those that one `mpiexec` or `srun` started, where there are several.
pub fn mpi_rank(variable: impl Fn(&str) -> Option<String>) -> Option<u32> {
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

    fn words(traits: &[&str]) -> Result<EngineWords, Refusal> {
        let traits: Vec<Trait> = traits.iter().map(|t| Trait::parse(t).unwrap()).collect();
        EngineWords::of(&traits)
    }

    #[test]
    fn what_an_engine_is_told() {
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
            ["--IPEngine.enable_nanny=False has no effect: the engine watches over its Python itself"]
        );
    }

    #[test]
    fn what_it_cannot_do_is_refused() {
        for told in [
            "IPEngine.registration_url=tcp://h:1",
            "IPEngine.sshserver=h",
            "IPEngine.curve_secretkey=k",
            "IPEngine.id=x",
        ] {
            assert!(words(&[told]).is_err(), "{told}");
        }
    }

    #[test]
    fn a_rank_is_one_of_several() {
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
