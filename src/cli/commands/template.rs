//! `pcluster template`
use crate::cli::output::table::{Cell, Table};
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::ClusterError;
use crate::launchers::batch::{self, BatchSystem, JobKind, template as batch_template};
use crate::launchers::templates;
use crate::profile::ProfileDir;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// List, show and copy batch script templates
///
/// A template is a script with variables such as {{ n }}. A copy in the profile replaces pcluster's own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster template list\n  pcluster template show slurm\n  pcluster template copy pbs/controller")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: TemplateAction,
}

#[derive(Debug, clap::Subcommand)]
enum TemplateAction {
    /// List the templates with their sources, and the available variables
    List,
    /// Print the template that the profile uses
    Show {
        /// Template: `slurm` (its engines), `slurm/controller`, or a name from the list
        name: String,
        /// Print pcluster's own template, even if the profile overrides it
        #[arg(long)]
        own: bool,
    },
    /// Copy pcluster's own template into the profile, to edit it
    Copy {
        /// Template: `slurm` (its engines), `slurm/controller`, or a name from the list
        name: String,
        /// Copy to this directory instead, for use with --template
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// A template, with its batch system and kind.
struct Named {
    system: &'static dyn BatchSystem,
    kind: JobKind,
    name: &'static str,
    text: &'static str,
}

impl Named {
    fn full(&self) -> String {
        format!("{}/{}", self.system.name(), self.name)
    }
}

fn all() -> Vec<Named> {
    let mut all = Vec::new();
    for system in batch::SYSTEMS.iter().filter_map(|name| batch::by_name(name)) {
        for kind in [JobKind::Engines, JobKind::Controller] {
            let templates = system.templates(kind).iter();
            all.extend(templates.map(|template| Named {
                system,
                kind,
                name: template.name,
                text: template.text,
            }));
        }
    }
    all
}

/// The templates with this name: one, or two for HTCondor.
fn named(name: &str) -> Result<Vec<Named>, CommandError> {
    let whole = match name.contains('/') {
        true => name.to_string(),
        false => format!("{name}/engines"),
    };
    let means = |template: &Named| template.full() == whole || template.full().starts_with(&format!("{whole}."));
    let found: Vec<Named> = all().into_iter().filter(means).collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(CommandError::not_found(format!("no template {name:?}")).hint(format!(
            "the batch systems are: {}; `pcluster template list` shows all",
            batch::SYSTEMS.join(", ")
        ))),
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    match args.action {
        TemplateAction::List => list(&profile, context),
        TemplateAction::Show { name, own } => show(&name, own, &profile, context),
        TemplateAction::Copy { name, to } => copy(&name, to, &profile, context),
    }
}

fn list(profile: &ProfileDir, context: &Context) -> Result<Exit, CommandError> {
    let from = |template: &Named| {
        let path = templates::of_profile(profile, template.system.name(), template.name);
        path.exists().then_some(path)
    };
    if context.json {
        let views: Vec<_> = all()
            .iter()
            .map(|t| serde_json::json!({"name": t.full(), "path": from(t)}))
            .collect();
        let variables: Vec<_> = batch_template::VARIABLES
            .iter()
            .map(|(name, means)| serde_json::json!({"name": name, "means": means}))
            .collect();
        json::print(&serde_json::json!({"templates": views, "variables": variables}))?;
        return Ok(Exit::Fine);
    }
    let mut table = Table::new().column("TEMPLATE").text("FROM");
    for template in all() {
        let from = from(&template).map_or("pcluster".to_string(), |path| path.display().to_string());
        table.row(vec![Cell::new(template.full()), Cell::new(from)]);
    }
    let mut text = table.render(&context.terminal);
    text.push_str("\nVariables, written {{ name }}. Directives whose variable is not set are omitted.\n");
    for (name, means) in batch_template::VARIABLES {
        text.push_str(&format!("  {name:<21} {means}\n"));
    }
    output::print(&text)?;
    Ok(Exit::Fine)
}

fn show(name: &str, own: bool, profile: &ProfileDir, context: &Context) -> Result<Exit, CommandError> {
    let mut shown = Vec::new();
    for template in named(name)? {
        let counts = templates::load(profile, template.system, template.kind, None).map_err(ClusterError::Launch)?;
        let source = counts.into_iter().find(|source| source.name == template.name && !own);
        let (text, path) = source.map_or((template.text.to_string(), None), |source| (source.text, source.path));
        shown.push((template.full(), text, path));
    }
    if context.json {
        let views: Vec<_> = shown
            .iter()
            .map(|(name, text, path)| serde_json::json!({"name": name, "path": path, "text": text}))
            .collect();
        json::print(&serde_json::json!({"templates": views}))?;
        return Ok(Exit::Fine);
    }
    let several = shown.len() > 1;
    for (name, text, _) in &shown {
        let heading = if several { format!("# ---- {name}\n") } else { String::new() };
        output::print(&format!("{heading}{text}"))?;
    }
    Ok(Exit::Fine)
}

fn copy(name: &str, to: Option<PathBuf>, profile: &ProfileDir, context: &Context) -> Result<Exit, CommandError> {
    let mut copied = Vec::new();
    for template in named(name)? {
        let path = match &to {
            Some(dir) => dir.join(template.name),
            None => templates::of_profile(profile, template.system.name(), template.name),
        };
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AlreadyExists => CommandError::refused(format!("{} already exists; not overwritten", path.display()))
                .hint("remove it, or copy to another directory with --to DIR"),
            _ => CommandError::environment(format!("cannot write {}: {e}", path.display())),
        };
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(template.text.as_bytes())).map_err(failed)?;
        copied.push((template.full(), path));
    }
    if context.json {
        let views: Vec<_> = copied
            .iter()
            .map(|(name, path)| serde_json::json!({"name": name, "path": path}))
            .collect();
        json::print(&serde_json::json!({"copied": views}))?;
        return Ok(Exit::Fine);
    }
    for (name, path) in &copied {
        context.note(format!("copied {name} to {}", path.display()));
    }
    context.note(match to.is_some() {
        true => "use it with --template FILE".to_string(),
        false => format!(
            "takes effect at the next start; preview it with `pcluster script{}`",
            context.options()
        ),
    });
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_selects_one_template_or_a_pair() {
        let names = |name: &str| named(name).unwrap().iter().map(Named::full).collect::<Vec<_>>();
        assert_eq!(names("slurm"), ["slurm/engines.sh.tera"]);
        assert_eq!(names("slurm/controller"), ["slurm/controller.sh.tera"]);
        assert_eq!(names("sge/engines.sh.tera"), ["sge/engines.sh.tera"]);
        assert_eq!(names("htcondor"), ["htcondor/engines.sub.tera", "htcondor/engines.sh.tera"]);
        assert_eq!(names("htcondor/engines.sh"), ["htcondor/engines.sh.tera"]);
        assert_eq!(named("local").err().unwrap().kind.code(), 3);
    }

    #[test]
    fn a_copied_template_is_used_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = Context::for_tests(dir.path());
        context.quiet = true;
        let profile = ProfileDir::named("p", Some(dir.path())).unwrap();
        copy("slurm", None, &profile, &context).unwrap();
        let path = templates::of_profile(&profile, "slurm", "engines.sh.tera");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), named("slurm").unwrap()[0].text);
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(copy("slurm", None, &profile, &context).unwrap_err().kind.code(), 4);
        let system = batch::by_name("slurm").unwrap();
        let sources = templates::load(&profile, system, JobKind::Engines, None).unwrap();
        assert_eq!(
            (sources[0].text.as_str(), sources[0].path.as_deref()),
            ("mine", Some(path.as_path()))
        );
    }
}
