//! `pcluster connection`
use crate::cli::output::visible::visible;
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, ErrorKind, Exit};
use crate::cluster::{self, Condition};
use crate::connection::ConnectionFile;
use crate::connection::file::BroadcastPorts;
use crate::sys::private_file;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Show, export or import connection files
///
/// `connect` does this automatically. Anyone with a connection file can run code as you on your engines: it is shown without its
/// keys, and written with private permissions.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster connection show\n  pcluster connection export laptop.json\n  pcluster connection import laptop.json --profile site"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: ConnectionAction,
}

#[derive(Debug, clap::Subcommand)]
enum ConnectionAction {
    /// Show a connection file without its keys, and whether its controller is running
    Show {
        #[command(flatten)]
        which: FileSelection,
    },
    /// Write a copy for another host
    Export {
        #[command(flatten)]
        which: FileSelection,
        /// Write to this new, private file; `-` for stdout, including the keys
        #[arg(value_name = "FILE")]
        to: PathBuf,
        /// Let ipyparallel's clients connect through this ssh server
        #[arg(long, value_name = "USER@HOST")]
        ssh: Option<String>,
    },
    /// Install a copied connection file in the profile
    Import {
        /// Read this file; `-` for stdin
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// Import it as the engines' file
        #[arg(long)]
        engine: bool,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
struct FileSelection {
    /// Use the engines' file instead of the clients'
    #[arg(long)]
    engine: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    match args.action {
        ConnectionAction::Show { which } => show(&which, context),
        ConnectionAction::Export { which, to, ssh } => export(&which, &to, ssh, context),
        ConnectionAction::Import { from, engine, force } => import(&from, engine, force, context),
    }?;
    Ok(Exit::Fine)
}

fn path_of(engine: bool, context: &Context) -> Result<PathBuf, CommandError> {
    let profile = context.profile_dir()?;
    Ok(match engine {
        true => profile.engine_file(&context.cluster_id),
        false => profile.client_file(&context.cluster_id),
    })
}

/// `running`, `dead`, `connected`; `unknown` for a controller on another host.
fn state(file: &ConnectionFile, context: &Context) -> Result<&'static str, CommandError> {
    let profile = context.profile_dir()?;
    let condition = cluster::status(&profile, &context.cluster_id).map(|c| c.state);
    Ok(match &file.pcluster {
        _ if condition == Some(Condition::Connected) => "connected",
        Some(_) if file.is_stale() => "dead",
        Some(keys) if keys.process.runs() => "running",
        _ => "unknown",
    })
}

fn show(which: &FileSelection, context: &Context) -> Result<(), CommandError> {
    let path = path_of(which.engine, context)?;
    let file = ConnectionFile::read(&path)?;
    let state = state(&file, context)?;
    let keys = file.pcluster.as_ref();
    let broadcast: Vec<u16> = match &file.broadcast {
        BroadcastPorts::One(port) => vec![*port],
        BroadcastPorts::Leaves(ports) => ports.clone(),
    };
    let ports = serde_json::json!({
        "registration": file.registration, "control": file.control, "mux": file.mux, "task": file.task, "iopub": file.iopub,
        "notification": file.notification, "broadcast": broadcast,
    });
    let addresses: Vec<String> = keys.map(|k| k.addresses.clone()).unwrap_or_default();
    if context.json {
        return json::print(&serde_json::json!({
            "path": path, "state": state, "interface": file.interface, "location": file.location, "ssh": file.ssh, "ports": ports,
            "addresses": addresses, "curve": file.curve_serverkey.is_some(), "controller_pid": keys.map(|k| k.process.pid),
            "controller_host": keys.map(|k| &k.process.host), "pcluster": keys.map(|k| &k.version), "destination": destination(&file),
        }));
    }
    let mut lines = vec![
        ("file", path.display().to_string()),
        ("state", state.to_string()),
        ("interface", file.interface.clone()),
        ("location", file.location.clone()),
        ("ports", ports.to_string()),
        (
            "keys",
            match file.curve_serverkey.is_some() {
                true => "HMAC and CURVE (not shown)".to_string(),
                false => "HMAC (not shown); not encrypted".to_string(),
            },
        ),
    ];
    if !file.ssh.is_empty() {
        lines.push(("ssh", file.ssh.clone()));
    }
    if let Some(keys) = keys {
        lines.push(("addresses", addresses.join(", ")));
        let tunnel = keys.tunnel.as_ref();
        let controller = tunnel.map_or(&keys.process, |tunnel| &tunnel.process);
        lines.push(("controller", format!("pcluster {}, {controller}", keys.version)));
        if let Some(tunnel) = tunnel {
            lines.push(("tunnel", format!("local process {}, to {}", keys.process.pid, tunnel.destination)));
        }
    }
    let text: String = lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    output::print(&visible(&text))
}

fn destination(file: &ConnectionFile) -> Option<&str> {
    Some(file.pcluster.as_ref()?.tunnel.as_ref()?.destination.as_str())
}

fn export(which: &FileSelection, to: &Path, ssh: Option<String>, context: &Context) -> Result<(), CommandError> {
    let path = path_of(which.engine, context)?;
    let mut file = ConnectionFile::read(&path)?;
    if let Some(destination) = destination(&file) {
        return Err(CommandError::refused(format!(
            "{} is the local end of a tunnel to {destination}; it works only on this host",
            path.display()
        ))
        .hint(format!("export the remote file: ssh {destination} pcluster connection export FILE")));
    }
    if file.is_stale() {
        let error = crate::connection::discover::find(&path).err().map(CommandError::from);
        return Err(error.unwrap_or_else(|| CommandError::not_found("its controller is dead")));
    }
    // On another host a loopback address would mean that host.
    if let Some(keys) = &file.pcluster
        && matches!(file.location.as_str(), "127.0.0.1" | "::1" | "localhost" | "")
    {
        file.location = keys.process.host.clone();
    }
    if let Some(ssh) = ssh {
        if file.curve_serverkey.is_some() {
            context.note(format!(
                "note: ipyparallel 9.2 cannot tunnel to an encrypted (CURVE) controller; on the other host, run: pcluster connect {ssh}"
            ));
        }
        file.ssh = ssh;
    }
    if to == Path::new("-") {
        let text = serde_json::to_string_pretty(&file).map_err(CommandError::internal)?;
        return output::print(&format!("{text}\n"));
    }
    let mut text = serde_json::to_vec_pretty(&file).map_err(CommandError::internal)?;
    text.push(b'\n');
    private_file::write_new(to, &text).map_err(|e| {
        let error = CommandError::environment(format!("cannot write {}: {e}", to.display()));
        match e.kind() {
            std::io::ErrorKind::AlreadyExists => error.hint("choose another name, or remove it first"),
            _ => error,
        }
    })?;
    context.note(format!(
        "{}: anyone with this file can run code on your cluster; copy it with scp, not by mail",
        to.display()
    ));
    Ok(())
}

fn import(from: &Path, engine: bool, force: bool, context: &Context) -> Result<(), CommandError> {
    const MAX_BYTES: u64 = 1 << 20;
    let mut text = String::new();
    let read = match from == Path::new("-") {
        true => std::io::stdin().take(MAX_BYTES).read_to_string(&mut text),
        false => std::fs::File::open(from).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)),
    };
    read.map_err(|e| CommandError::environment(format!("cannot read {}: {e}", from.display())))?;
    let file = ConnectionFile::parse(&text, from)?;
    if engine != file.hb_ping.is_some() {
        let (is, option) = if engine { ("clients'", "without") } else { ("engines'", "with") };
        return Err(CommandError::usage(format!("{} is a {is} file", from.display())).hint(format!("import it {option} --engine")));
    }
    if file.is_stale() {
        return Err(CommandError::new(
            ErrorKind::NotFound,
            format!("{} belongs to a dead controller of this host", from.display()),
        ));
    }
    let profile = context.profile_dir()?;
    let path = path_of(engine, context)?;
    if !force && let Ok(existing) = ConnectionFile::read(&path) {
        let same = existing == file;
        if !same && !existing.is_stale() {
            return Err(
                CommandError::refused(format!("{} already exists and may be in use", path.display())).hint(format!(
                    "use another --profile or --cluster-id, or replace it with --force; inspect it with pcluster connection show{}",
                    context.options()
                )),
            );
        }
    }
    profile.create()?;
    file.write(&path)?;
    let reach = match (file.ssh.is_empty(), file.pcluster.as_ref().map(|k| k.process.host.clone())) {
        (false, _) => format!("; ipyparallel's Client opens a tunnel through {}", file.ssh),
        (true, Some(host)) => format!("; its controller is on {host}"),
        _ => String::new(),
    };
    context.note(format!("{}{reach}", path.display()));
    Ok(())
}
