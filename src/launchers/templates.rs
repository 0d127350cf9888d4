//! Selects the template of a job: the built-in one, the profile's, or a named file.
use super::LaunchError;
use super::batch::{BatchSystem, JobKind, JobRequest, ScriptFile, Template, render};
use crate::profile::ProfileDir;
use std::io;
use std::path::{Path, PathBuf};

/// A template and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateSource {
    /// `engines.sh.tera`
    pub name: &'static str,
    pub text: String,
    /// None for a built-in template.
    pub path: Option<PathBuf>,
}

/// The path of a profile's own template of this name.
pub(crate) fn of_profile(profile: &ProfileDir, system: &str, name: &str) -> PathBuf {
    profile.path().join("templates").join(system).join(name)
}

/// Loads the templates; the first one is submitted. `given` is `--template`, or the setting of the
/// same name.
pub(crate) fn load(
    profile: &ProfileDir,
    system: &dyn BatchSystem,
    kind: JobKind,
    given: Option<&Path>,
) -> Result<Vec<TemplateSource>, LaunchError> {
    let templates = system.templates(kind);
    let which = given.map(|path| replaced_by(templates, path));
    let mut sources = Vec::new();
    for (at, template) in templates.iter().enumerate() {
        let path = match given {
            Some(path) if which == Some(at) => profile.path().join(path),
            _ => of_profile(profile, system.name(), template.name),
        };
        let is_given = which == Some(at);
        let (text, path) = match std::fs::read_to_string(&path) {
            Ok(text) => (text, Some(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_given => (template.text.to_string(), None),
            Err(source) => return Err(LaunchError::ReadTemplate { path, source }),
        };
        let name = template.name;
        sources.push(TemplateSource { name, text, path });
    }
    Ok(sources)
}

/// The index of the template that a file replaces: the one with the same extension.
fn replaced_by(templates: &[Template], path: &Path) -> usize {
    let ending = |name: &str| name.trim_end_matches(".tera").rsplit('.').next().map(str::to_string);
    let wanted = ending(&path.to_string_lossy());
    templates.iter().position(|template| ending(template.name) == wanted).unwrap_or(0)
}

/// Renders the files of a job; the first one is submitted. Writes nothing.
pub(crate) fn scripts(
    profile: &ProfileDir,
    system: &dyn BatchSystem,
    request: &JobRequest,
    given: Option<&Path>,
) -> Result<Vec<ScriptFile>, LaunchError> {
    let given = given
        .map(Path::to_path_buf)
        .or(request.resources.template.as_ref().map(PathBuf::from));
    let mut files = Vec::new();
    for source in load(profile, system, request.kind, given.as_deref())? {
        let shown = source
            .path
            .as_ref()
            .map_or(source.name.to_string(), |path| path.display().to_string());
        let text = render::render_named(system, source.name, &shown, &source.text, request)?;
        let extension = source.name.trim_end_matches(".tera").rsplit('.').next().unwrap_or("sh");
        files.push(ScriptFile {
            path: request.script.with_extension(extension),
            text,
            executable: extension == "sh",
        });
    }
    Ok(files)
}
