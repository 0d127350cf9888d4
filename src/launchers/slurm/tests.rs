use super::*;
use crate::launchers::batch::tests::{engines, rendered};

#[test]
fn an_engine_set_is_one_array() {
    let mut request = engines(15);
    request.resources.queue = Some("batch".into());
    request.resources.directives = vec!["--exclusive".into(), "--comment=\"for pi\"".into()];
    insta::assert_snapshot!(rendered(&Slurm, &request), @r#"
    #!/bin/sh
    #SBATCH --job-name=pcluster-mycluster-k3x9
    #SBATCH --array=1-15
    #SBATCH --partition=batch
    #SBATCH --chdir=/home/ada/work
    #SBATCH --output=/home/ada/.ipython/profile_mycluster/log/engines-%A_%a.log
    #SBATCH --open-mode=append
    #SBATCH --exclusive
    #SBATCH --comment="for pi"
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""

    export PCLUSTER_JOB="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" PCLUSTER_ELEMENT="${SLURM_ARRAY_TASK_ID:-}"

    exec /opt/pcluster/bin/pcluster engine --profile-dir /home/ada/.ipython/profile_mycluster
    "#);
}
