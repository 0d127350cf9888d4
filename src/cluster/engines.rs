//! More engines for a cluster that runs.
use super::launch::{self, EngineWish, Undo, Watched};
use super::list::{Condition, Standing};
use super::lock::Lock;
use super::start::{StartProgress, kind_word};
use super::{ClusterError, ClusterState};
use crate::client::Client;
use crate::connection::discover;
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::PathBuf;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct AddOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// How many more.
    pub n: u32,
    pub settings: Vec<(String, String)>,
    pub launcher: Option<String>,
    pub engine_kind: Option<EngineKind>,
    pub python: Option<String>,
    pub cwd: Option<PathBuf>,
    pub log_level: Option<String>,
    pub program: Option<PathBuf>,
}

impl AddOptions {
    pub fn new(profile: ProfileDir, cluster_id: &str, n: u32) -> AddOptions {
        AddOptions {
            profile,
            cluster_id: cluster_id.into(),
            n,
            settings: Vec::new(),
            launcher: None,
            engine_kind: None,
            python: None,
            cwd: None,
            log_level: None,
            program: None,
        }
    }
}

/// Starts `n` more engines and returns when they are registered; how many there are then. If that fails, the new ones
/// are ended again.
pub async fn add_engines(options: AddOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<u32, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let mut config = Config::load_with(profile, &options.settings)?;
    if let Some(launcher) = options.launcher {
        config.launcher.engines = launcher;
    }
    config.engine.kind = options.engine_kind.unwrap_or(config.engine.kind);
    config.engine.python = options.python.or(config.engine.python);
    let launcher = launch::launcher(&config.launcher.engines, profile, &config)?;
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let _lock = Lock::take(profile, cluster_id)?;
    let standing = Standing::of(profile, cluster_id);
    if !matches!(standing.condition, Condition::Running | Condition::Elsewhere) {
        return Err(super::not_running(profile, cluster_id));
    }
    let wish = EngineWish {
        settings: options.settings,
        program: launch::program(&options.program)?,
        cwd: launch::directory(&options.cwd)?,
        log_level: options.log_level,
        config,
    };
    if let Some(warning) = wish.check()? {
        progress(StartProgress::Note(warning));
    }
    // Its supervisor may just be starting it again.
    let path = profile.client_file(cluster_id);
    let client_file = super::start::in_thread(move || discover::wait(&path, CONNECT, || Ok::<_, ClusterError>(()))).await??;
    let client = Client::connect(&client_file, CONNECT).await?;
    let before = launch::heard_of(&client.status().await?);

    // A controller that was started by hand has no state file.
    let mut state = standing.state.unwrap_or_else(|| ClusterState::new(cluster_id, wish.cwd.clone()));
    if state.engines.is_empty() {
        state.engine_kind = kind_word(wish.config.engine.kind).into();
    }
    progress(StartProgress::EnginesStarting { n: options.n });
    let engines = launcher.start_engines(&wish.launch(profile, &state, options.n))?;
    let mut undo = Undo::new(Duration::from_millis(wish.config.launcher.kill_ms));
    undo.add(&launcher, &engines);
    let old = state.clone();
    state.n += options.n;
    state.next_engine += options.n;
    state.engines.push(engines.clone());
    state.write(profile)?;
    let timeout = Duration::from_millis(wish.config.launcher.engines_timeout_ms);
    let expected = before + options.n as usize;
    let new = Watched {
        launcher,
        launched: &engines,
    };
    if let Err(error) = launch::registered(&client, expected, new, None, timeout, progress).await {
        drop(undo);
        old.write(profile)?;
        return Err(error);
    }
    undo.all_went_well();
    Ok(expected as u32)
}
