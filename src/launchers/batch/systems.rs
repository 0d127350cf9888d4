//! The batch systems by name.
use super::BatchSystem;
use crate::launchers::{htcondor, lsf, pbs, sge, slurm};

/// The names of the batch systems, as on the command line and in the configuration.
pub(crate) const SYSTEMS: [&str; 5] = ["slurm", "sge", "pbs", "lsf", "htcondor"];

/// The row of a batch system.
pub(crate) fn by_name(name: &str) -> Option<&'static dyn BatchSystem> {
    match name {
        "slurm" => Some(&slurm::Slurm),
        "sge" => Some(&sge::Sge),
        "pbs" => Some(pbs::row()),
        "lsf" => Some(&lsf::Lsf),
        "htcondor" => Some(&htcondor::HtCondor),
        _ => None,
    }
}
