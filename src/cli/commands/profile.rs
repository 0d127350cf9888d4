//! `pcluster profile`
use crate::cli::output::table::{Cell, Table};
use crate::cli::output::{self, json};
use crate::cli::resources::SettingArgs;
use crate::cli::{CommandError, Context, Exit};
use crate::profile::config::origins::{self, Entry, Origin};
use crate::profile::{EXAMPLE_CONFIG, ProfileDir};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Create, list and show profiles
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster profile create gpu\n  pcluster profile show gpu --launcher slurm --queue long\n  pcluster profile path"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: ProfileAction,
}

#[derive(Debug, clap::Subcommand)]
enum ProfileAction {
    /// Create a profile directory with a commented pcluster.yaml
    Create {
        /// Name of the profile [default: that of --profile]
        name: Option<String>,
    },
    /// List the profiles
    List,
    /// Show the effective settings and the source of each: default, line of pcluster.yaml, or option
    Show {
        /// Name of the profile [default: that of --profile]
        name: Option<String>,
        /// Include batch system settings that are not set
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        settings: Box<SettingArgs>,
    },
    /// Print the directory of a profile
    Path {
        /// Name of the profile [default: that of --profile]
        name: Option<String>,
    },
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = |name: Option<String>| match name {
        Some(name) => Ok(ProfileDir::named(&name, context.ipython_dir.as_deref())?),
        None => context.profile_dir(),
    };
    match args.action {
        ProfileAction::Create { name } => create(&profile(name)?, context),
        ProfileAction::List => list(context),
        ProfileAction::Show { name, all, settings } => show(&profile(name)?, all, &settings, context),
        ProfileAction::Path { name } => {
            let profile = profile(name)?;
            let path = profile.path();
            match context.json {
                true => json::print(&serde_json::json!({"profile": profile.name(), "path": path, "exists": profile.exists()}))?,
                false => output::print(&format!("{}\n", path.display()))?,
            }
            Ok(Exit::Fine)
        }
    }
}

fn create(profile: &ProfileDir, context: &Context) -> Result<Exit, CommandError> {
    profile.create()?;
    let path = profile.config_file();
    let created = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    let made = match created.and_then(|mut file| file.write_all(EXAMPLE_CONFIG.as_bytes())) {
        Ok(()) => true,
        // An existing file is not overwritten.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(CommandError::environment(format!("cannot write {}: {e}", path.display()))),
    };
    if context.json {
        json::print(&serde_json::json!({"profile": profile.name(), "path": profile.path(), "config": path, "config_created": made}))?;
    } else if made {
        context.note(format!(
            "profile `{}` created in {}; edit its settings in {}",
            profile.name(),
            profile.path().display(),
            path.display()
        ));
    } else {
        context.note(format!(
            "profile `{}` is in {}; {} already exists, not overwritten",
            profile.name(),
            profile.path().display(),
            path.display()
        ));
    }
    Ok(Exit::Fine)
}

fn list(context: &Context) -> Result<Exit, CommandError> {
    let profiles = ProfileDir::all(context.ipython_dir.as_deref())?;
    if context.json {
        let views: Vec<_> = profiles
            .iter()
            .map(|p| serde_json::json!({"profile": p.name(), "path": p.path(), "config": p.config_file().exists()}))
            .collect();
        json::print(&serde_json::json!({"profiles": views}))?;
    } else if profiles.is_empty() {
        context.note("no profiles yet; `pcluster start` creates `default`, `pcluster profile create NAME` another");
    } else {
        let mut table = Table::new().column("PROFILE").column("SETTINGS").text("DIRECTORY");
        for profile in &profiles {
            let settings = if profile.config_file().exists() {
                "pcluster.yaml"
            } else {
                "defaults"
            };
            table.row(vec![
                Cell::new(profile.name()),
                Cell::new(settings),
                Cell::new(profile.path().display()),
            ]);
        }
        output::print(&table.render(&context.terminal))?;
    }
    Ok(Exit::Fine)
}

fn show(profile: &ProfileDir, all: bool, given: &SettingArgs, context: &Context) -> Result<Exit, CommandError> {
    if !profile.exists() {
        return Err(CommandError::not_found(format!(
            "no profile `{}`: {} does not exist",
            profile.name(),
            profile.path().display()
        ))
        .hint(format!("create it: pcluster profile create {}", profile.name()))
        .hint("or list the existing ones: pcluster profile list"));
    }
    let (settings, config) = given.config(profile)?;
    let file = profile.config_file();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(CommandError::environment(format!("cannot read {}: {e}", file.display()))),
    };
    let entries = origins::explain(&text, &settings)?;
    let from = |origin: &Origin| match origin {
        Origin::Default => "default".to_string(),
        Origin::File(line) => format!("pcluster.yaml:{line}"),
        Origin::Setting(by) => by.clone(),
    };
    if context.json {
        let origins: serde_json::Map<_, _> = entries.iter().map(|e| (e.key.clone(), from(&e.origin).into())).collect();
        json::print(&serde_json::json!({"profile": profile.name(), "path": profile.path(), "config": config, "origins": origins}))?;
        return Ok(Exit::Fine);
    }
    let mut lines = vec![format!("# {}", profile.path().display())];
    if text.is_empty() {
        lines.push("# no pcluster.yaml".into());
    }
    let shown = |entry: &&Entry| all || entry.origin != Origin::Default || !entry.key.starts_with("launchers.");
    let mut open: Vec<&str> = Vec::new();
    for entry in entries.iter().filter(shown) {
        let path: Vec<&str> = entry.key.split('.').collect();
        let (leaf, sections) = path.split_last().map_or(("", [].as_slice()), |(leaf, sections)| (*leaf, sections));
        let same = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
        for (depth, section) in sections.iter().enumerate().skip(same) {
            lines.push(format!("{:width$}{section}:", "", width = 2 * depth));
        }
        open = sections.to_vec();
        let line = format!("{:width$}{leaf}: {}", "", in_one_line(&entry.value), width = 2 * sections.len());
        lines.push(format!("{line:<50} # {}", from(&entry.origin)));
    }
    output::print(&format!("{}\n", lines.join("\n")))?;
    Ok(Exit::Fine)
}

/// YAML on one line; multi-line values are written as JSON, which is also valid YAML.
fn in_one_line(value: &serde_yaml::Value) -> String {
    let yaml = serde_yaml::to_string(value).unwrap_or_default();
    match yaml.trim_end() {
        line if !line.contains('\n') && !value.is_sequence() => line.to_string(),
        _ => serde_json::to_string(value).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Config;

    #[test]
    fn created_profiles_are_valid_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = Context::for_tests(dir.path());
        context.quiet = true;
        let profile = ProfileDir::named("mine", Some(dir.path())).unwrap();
        create(&profile, &context).unwrap();
        assert_eq!(Config::load(&profile).unwrap(), Config::default());
        std::fs::write(profile.config_file(), "controller: {hwm: 7}\n").unwrap();
        create(&profile, &context).unwrap();
        assert_eq!(Config::load(&profile).unwrap().controller.hwm, 7);
    }
}
