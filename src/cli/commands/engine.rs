//! `pcluster engine`: started by launchers, pcluster's and ipyparallel's.
use super::{SupervisionPolicy, setting, supervise, supervise_this, watch_supervisor};
use crate::cli::ipyparallel::Trait;
use crate::cli::ipyparallel::common::{ClusterSelection, CommonOptions, LauncherEnvironment};
use crate::cli::ipyparallel::engine::{EngineTraits, mpi_rank};
use crate::cli::resources::NodeArgs;
use crate::cli::{CommandError, Context, Exit, logging, output};
use crate::connection::{ConnectionError, ConnectionFile, discover};
use crate::engine::settings::BatchJob;
use crate::engine::{self, EngineSettings};
use crate::launchers::ssh::reachability::{FAILED, REACHED};
use crate::launchers::supervisor::Supervised;
use crate::model::EngineId;
use crate::profile::Config;
use crate::ssh::forward::{self, Greeting};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The timeout for the connection file: batch systems may start an engine before the controller has written it.
const FILE_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout of `--probe` for the greeting of a controller.
const PROBE: Duration = Duration::from_secs(4);

/// Run an engine in the foreground
///
/// Launchers start this; use `pcluster start -n 4` to start a cluster. Logs to stderr, and runs until its controller or SIGTERM
/// stops it. SIGINT (Ctrl-C) interrupts the running task; an idle engine at a terminal exits.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster engine --profile gpu\n  pcluster engine --file ipcontroller-engine.json --log-level debug")]
pub(crate) struct Args {
    /// Read this connection file [default: that of the profile]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Use this profile directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Run workers with this Python interpreter [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// Request this engine id
    #[arg(long, value_name = "N")]
    id: Option<u32>,
    /// Override a setting of pcluster.yaml, for example engine.interrupt_timeout_ms=1000
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    nodes: NodeArgs,
    /// Run the engine as a child process, and replace it when it is killed or crashes
    #[arg(long)]
    supervise: bool,
    /// Replace an engine that was killed: its controller may be restarting as well
    #[arg(long, hide = true)]
    replacement: bool,
    /// Only report whether a controller answers at these addresses
    #[arg(long, value_name = "ADDRESS:PORT", hide = true)]
    probe: Vec<String>,
    /// Set the log level: error, warn, info, debug, trace, or Python's level names and numbers
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Supervise this command of an ipengine instead
    #[arg(last = true, requires = "supervise", value_name = "COMMAND", hide = true)]
    instead: Vec<OsString>,
    #[command(flatten)]
    ipengine: Ipengine,
}

/// The options of ipengine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Compatible with ipengine")]
struct Ipengine {
    /// Use the MPI rank as engine id, and set mpi_rank and mpi_size (for engines started by mpiexec)
    #[arg(long)]
    mpi: bool,
    /// Run this Python code at startup
    #[arg(short = 'c', long = "c", value_name = "CODE")]
    command: Option<String>,
    /// Run this Python file at startup
    #[arg(short = 's', long = "s", value_name = "FILE")]
    script: Option<String>,
    /// Stop trying to register after SECONDS
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// Connect to the controller on this host, instead of that in the connection file
    #[arg(long, value_name = "HOST")]
    location: Option<String>,
    #[arg(long, hide = true)]
    ssh: Option<String>,
    #[arg(long, hide = true)]
    sshkey: Option<String>,
    #[arg(long, hide = true)]
    url: Option<String>,
    #[command(flatten)]
    common: CommonOptions,
}

impl Ipengine {
    /// The traits of the options.
    fn traits(&self) -> Vec<Trait> {
        let valued = [
            ("IPEngine", "startup_command", &self.command),
            ("IPEngine", "startup_script", &self.script),
            ("IPEngine", "timeout", &self.timeout),
            ("IPEngine", "location", &self.location),
            ("IPEngine", "sshserver", &self.ssh),
            ("IPEngine", "sshkey", &self.sshkey),
            ("IPEngine", "registration_url", &self.url),
        ];
        let flags = [("IPEngine", "use_mpi", "True", self.mpi)];
        self.common.after(&valued, &flags)
    }
}

const POLICY: SupervisionPolicy = SupervisionPolicy {
    again: &["--replacement"],
    retries: false,
    watches: true,
};

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if !args.probe.is_empty() {
        return probe(&args.probe, context);
    }
    if args.supervise {
        logging::start(context.log_level(args.log_level.as_deref().unwrap_or("info")));
        return match args.instead.split_first() {
            None => supervise(&POLICY, None),
            Some((program, arguments)) => supervise_this(&Supervised {
                program: program.into(),
                arguments: arguments.to_vec(),
                restart_arguments: Vec::new(),
                retries_refusals: false,
                watches_supervisor: false,
                problem: None,
                is_own_program: false,
            }),
        };
    }
    watch_supervisor(&POLICY)?;
    let mut words = EngineTraits::of(&args.ipengine.traits()).map_err(CommandError::usage)?;
    words.common.log_level = args.log_level.or(words.common.log_level);
    // An explicit file means that ipyparallel's launchers did not start this process.
    let environment = match args.file.is_some() || words.file.is_some() {
        true => LauncherEnvironment::default(),
        false => LauncherEnvironment::of_this_process(),
    };
    let by_ipyparallel = environment.is_there();
    let place = ClusterSelection::find(&words.common, args.profile_dir, environment, context)?;
    words.common.begin("ipengine", &place, context)?;
    let profile = place.profile;

    let settings = [&args.settings, args.nodes.settings()?].concat();
    let config = Config::load_with(&profile, &settings)?;
    let file = args.file.or(words.file).unwrap_or_else(|| match &words.file_name {
        Some(name) => profile.security_dir().join(name),
        None => profile.engine_file(&place.cluster_id),
    });
    let (connection, file) = match place.connection_info {
        Some(text) => (ConnectionFile::parse(&text, Path::new("$IPP_CONNECTION_INFO"))?, None),
        // If the controller was killed as well, use the file anyway: the ports are most likely unchanged.
        None if args.replacement => (ConnectionFile::read(&file)?, Some(file)),
        None => (wait_for(&file, words.file_timeout_ms)?, Some(file)),
    };
    let rank = || words.mpi.then(|| mpi_rank(|name| std::env::var(name).ok())).flatten();
    let registration_timeout_ms = match args.replacement {
        true => config.controller.engine_reconnect_timeout_ms,
        false => words.timeout_ms.unwrap_or(config.controller.registration_timeout_ms),
    };
    let settings = EngineSettings {
        file,
        location: words.location,
        id: args.id.or(words.id).or_else(rank).map(EngineId),
        python: args.python.or(config.engine.python),
        interrupt_timeout_ms: config.engine.interrupt_timeout_ms,
        terminate_timeout_ms: config.engine.terminate_timeout_ms,
        grace_period_ms: config.engine.grace_period_ms,
        resources: config.engine.resources,
        batch: BatchJob::of_this_process(),
        registration_timeout_ms,
        cwd: config.engine.cwd.map(|dir| dir.to_string_lossy().into_owned()),
        env: config.engine.env,
        // A user's Python startup file may be slow: only ipyparallel's launchers load it.
        shell_at_start: !words.shell.is_empty() || (by_ipyparallel && std::env::var_os("PYTHONSTARTUP").is_some_and(|f| !f.is_empty())),
        shell: words.shell,
        takes_in_orphans: true,
        profile_dir: Some(profile.path().to_path_buf()),
        ..EngineSettings::new(connection)
    };
    context.block_on_one_thread(engine::run(settings))??;
    Ok(Exit::Fine)
}

/// Probes all addresses concurrently; prints one line each, in order.
fn probe(addresses: &[String], context: &Context) -> Result<Exit, CommandError> {
    let mut parsed = Vec::new();
    for text in addresses {
        let parts = text
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let (host, port) = parts.ok_or_else(|| CommandError::usage(format!("{text:?} is not ADDRESS:PORT")))?;
        parsed.push((host.trim_matches(['[', ']']).to_string(), port));
    }
    let found = context.block_on(async {
        let look = |(host, port): (String, u16)| tokio::spawn(async move { forward::greeting_at(&host, port, PROBE).await });
        let looks: Vec<_> = parsed.into_iter().map(look).collect();
        let mut found = Vec::new();
        for look in looks {
            found.push(look.await.unwrap_or_else(|e| Err(e.into())));
        }
        found
    })?;
    let mut lines = String::new();
    for (address, found) in addresses.iter().zip(found) {
        let line = match found {
            Ok(Greeting::Speaks) => format!("{REACHED} {address}"),
            Ok(Greeting::Closed) => format!("{FAILED} {address} (closed: not a controller)"),
            Ok(Greeting::Silent) => format!("{FAILED} {address} (no answer in {} s)", PROBE.as_secs()),
            Err(why) => format!("{FAILED} {address} ({why})"),
        };
        lines.push_str(&line);
        lines.push('\n');
    }
    output::print(&lines)?;
    Ok(Exit::Fine)
}

/// Waits for the connection file: the engine may start before its controller has written it.
fn wait_for(file: &Path, timeout_ms: Option<u64>) -> Result<ConnectionFile, CommandError> {
    if !file.exists() {
        tracing::info!(file = %file.display(), "waiting for the controller's connection file");
    }
    let timeout = timeout_ms.map_or(FILE_TIMEOUT, Duration::from_millis);
    let waited = discover::wait(file, timeout, || Ok::<(), ConnectionError>(()));
    waited.map_err(|error| match discover::find(file) {
        // Prefers the reason over the timeout.
        Err(why @ ConnectionError::Stale { .. }) => CommandError::from(why),
        _ => CommandError::from(error),
    })
}
