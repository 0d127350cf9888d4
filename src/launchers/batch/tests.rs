//! What the rows' tests share.
use super::{BatchSystem, JobKind, JobRequest, render};
use crate::profile::config::resources::Resources;

/// A request for so many engines, with nothing asked for.
pub(crate) fn engines(n: u32) -> JobRequest {
    JobRequest {
        kind: JobKind::Engines,
        name: "pcluster-mycluster-k3x9".into(),
        profile: "mycluster".into(),
        cluster_id: String::new(),
        n,
        engines_per_job: 1,
        argv: [
            "/opt/pcluster/bin/pcluster",
            "engine",
            "--profile-dir",
            "/home/ada/.ipython/profile_mycluster",
        ]
        .map(String::from)
        .to_vec(),
        cwd: "/home/ada/work".into(),
        script: "/home/ada/.ipython/profile_mycluster/batch/pcluster-mycluster-k3x9.sh".into(),
        log_dir: "/home/ada/.ipython/profile_mycluster/log".into(),
        log_stem: "engines".into(),
        env: Vec::new(),
        resources: Resources::default(),
        mpiexec: vec!["mpiexec".into()],
    }
}

/// The script by pcluster's own template.
pub(crate) fn rendered(system: &dyn BatchSystem, request: &JobRequest) -> String {
    let template = system.templates(request.kind)[0];
    render(system, template.name, template.text, request).unwrap()
}
