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

    # A batch system may warn a whole process group before it kills; here only the shell hears it.
    trap '' USR1 USR2 XCPU
    started=
    /opt/pcluster/bin/pcluster engine --profile-dir /home/ada/.ipython/profile_mycluster &
    started=$!
    trap 'kill -TERM $started 2>/dev/null' TERM INT USR1 USR2 XCPU
    status=0
    for process in $started; do
        wait "$process" || status=$?
        # A signal ends the waiting, not the process.
        while kill -0 "$process" 2>/dev/null; do
            wait "$process" && status=0 || status=$?
        done
    done
    exit "$status"
    "#);
}
