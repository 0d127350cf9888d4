//! `pcluster engine`: what launchers start, pcluster's and ipyparallel's.
use super::{Care, setting, supervise, supervise_this, watch_supervisor};
use crate::cli::ipyparallel::Trait;
use crate::cli::ipyparallel::common::{CommonOptions, LauncherEnvironment, Place};
use crate::cli::ipyparallel::engine::{EngineWords, mpi_rank};
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

/// How long an engine waits for its connection file: batch systems may start it before the controller has written it.
const FILE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long `--probe` waits for a controller's greeting.
const PROBE: Duration = Duration::from_secs(4);

/// Run an engine in the foreground
///
/// Launchers start this; `pcluster start -n 4` is what one usually wants. It logs to stderr, and works until its controller
/// or SIGTERM ends it. SIGINT (Ctrl-C) interrupts what runs; where nothing runs, it ends an engine that has a terminal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The engine's connection file [default: the one of the profile]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// The Python interpreter for the worker [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// The id that the engine would like
    #[arg(long, value_name = "N")]
    id: Option<u32>,
    /// A setting over those of the profile's pcluster.yaml, for example engine.interrupt_ms=1000
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Start the engine as a process of its own, and another one whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// It takes the place of one that was killed: its controller may be about to come back too
    #[arg(long, hide = true)]
    replacement: bool,
    /// Start nothing: say whether a controller greets at these addresses
    #[arg(long, value_name = "ADDRESS:PORT", hide = true)]
    probe: Vec<String>,
    /// How much to log: error, warn, info, debug, trace, or Python's numbers and names of levels
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// What is to be started and supervised instead: the command of an ipengine
    #[arg(last = true, requires = "supervise", value_name = "COMMAND", hide = true)]
    instead: Vec<OsString>,
    #[command(flatten)]
    ipengine: Ipengine,
}

/// The same words as ipengine's.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "As ipengine has them")]
struct Ipengine {
    /// Engines that one mpiexec has started: take the MPI rank for an id, and set mpi_rank and mpi_size
    #[arg(long)]
    mpi: bool,
    /// Run this Python code at the start
    #[arg(short = 'c', long = "c", value_name = "CODE")]
    command: Option<String>,
    /// Run this Python file at the start
    #[arg(short = 's', long = "s", value_name = "FILE")]
    script: Option<String>,
    /// Seconds to try to register
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// The controller's host, instead of what the connection file says
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
    /// Each option is a name for a trait.
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

const CARE: Care = Care {
    restart_arguments: &["--replacement"],
    retries_refusals: false,
    watches_supervisor: true,
};

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if !args.probe.is_empty() {
        return probe(&args.probe, context);
    }
    if args.supervise {
        logging::start(context.log_level(args.log_level.as_deref().unwrap_or("info")));
        return match args.instead.split_first() {
            None => supervise(&CARE),
            Some((program, arguments)) => supervise_this(&Supervised {
                program: program.into(),
                arguments: arguments.to_vec(),
                restart_arguments: Vec::new(),
                retries_refusals: false,
                watches_supervisor: false,
                is_own_program: false,
            }),
        };
    }
    watch_supervisor(&CARE)?;
    let mut words = EngineWords::of(&args.ipengine.traits()).map_err(CommandError::usage)?;
    words.common.log_level = args.log_level.or(words.common.log_level);
    // Whoever names the file or the directory has not been started by ipyparallel's launchers.
    let environment = match args.file.is_some() || words.file.is_some() {
        true => LauncherEnvironment::default(),
        false => LauncherEnvironment::of_this_process(),
    };
    let by_ipyparallel = environment.is_there();
    let place = Place::find(&words.common, args.profile_dir, environment, context)?;
    words.common.begin("ipengine", &place, context)?;
    let profile = place.profile;

    let config = Config::load_with(&profile, &args.settings)?;
    let file = args.file.or(words.file).unwrap_or_else(|| match &words.file_name {
        Some(name) => profile.security_dir().join(name),
        None => profile.engine_file(&place.cluster_id),
    });
    let (connection, file) = match place.connection_info {
        Some(text) => (ConnectionFile::parse(&text, Path::new("$IPP_CONNECTION_INFO"))?, None),
        // One whose controller was killed with it takes the file as it is: the ports will most likely be the same.
        None if args.replacement => (ConnectionFile::read(&file)?, Some(file)),
        None => (wait_for(&file, words.file_timeout_ms)?, Some(file)),
    };
    let rank = || words.mpi.then(|| mpi_rank(|name| std::env::var(name).ok())).flatten();
    let registration_timeout_ms = match args.replacement {
        true => config.controller.controller_patience_ms,
        false => words.timeout_ms.unwrap_or(config.controller.registration_timeout_ms),
    };
    let settings = EngineSettings {
        file,
        location: words.location,
        id: args.id.or(words.id).or_else(rank).map(EngineId),
        python: args.python.or(config.engine.python),
        interrupt_ms: config.engine.interrupt_ms,
        terminate_ms: config.engine.terminate_ms,
        grace_ms: config.engine.grace_ms,
        batch: BatchJob::of_this_process(),
        registration_timeout_ms,
        cwd: config.engine.cwd.map(|dir| dir.to_string_lossy().into_owned()),
        env: config.engine.env,
        // A Python startup file of the user's may be heavy: it is for those who come with IPython.
        shell_at_start: !words.shell.is_empty() || (by_ipyparallel && std::env::var_os("PYTHONSTARTUP").is_some_and(|f| !f.is_empty())),
        shell: words.shell,
        takes_in_orphans: true,
        profile_dir: Some(profile.path().to_path_buf()),
        ..EngineSettings::new(connection)
    };
    context.block_on_one_thread(engine::run(settings))??;
    Ok(Exit::Fine)
}

/// All at the same time; one line for each, in their order.
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
            found.push(look.await.unwrap_or_else(|e| Err(e.to_string())));
        }
        found
    })?;
    let mut lines = String::new();
    for (address, found) in addresses.iter().zip(found) {
        let line = match found {
            Ok(Greeting::Speaks) => format!("{REACHED} {address}"),
            Ok(Greeting::Closed) => format!("{FAILED} {address} (closed: it is no controller)"),
            Ok(Greeting::Silent) => format!("{FAILED} {address} (no answer in {} s)", PROBE.as_secs()),
            Err(why) => format!("{FAILED} {address} ({why})"),
        };
        lines.push_str(&line);
        lines.push('\n');
    }
    output::print(&lines)?;
    Ok(Exit::Fine)
}

/// The engine may have been started before its controller has written the file.
fn wait_for(file: &Path, timeout_ms: Option<u64>) -> Result<ConnectionFile, CommandError> {
    if !file.exists() {
        tracing::info!(file = %file.display(), "waiting for the controller's connection file");
    }
    let timeout = timeout_ms.map_or(FILE_TIMEOUT, Duration::from_millis);
    let waited = discover::wait(file, timeout, || Ok::<(), ConnectionError>(()));
    waited.map_err(|error| match discover::find(file) {
        // Rather why than that.
        Err(why @ ConnectionError::Stale { .. }) => CommandError::from(why),
        _ => CommandError::from(error),
    })
}
