//! Options of both programs: profile, log, working directory. And the environment variables of ipyparallel's launchers.
use super::{Refusal, Trait};
use crate::cli::{CommandError, Context, logging};
use crate::profile::ProfileDir;
use std::path::{Path, PathBuf};

/// The common options, including ignored ones.
#[derive(Debug, clap::Args)]
pub(crate) struct CommonOptions {
    /// Log to a file in the profile's log directory
    #[arg(long)]
    log_to_file: bool,
    /// Remove earlier log files first
    #[arg(long)]
    clean_logs: bool,
    /// Work in this directory
    #[arg(long, value_name = "DIR")]
    work_dir: Option<String>,
    /// Log everything
    #[arg(long)]
    debug: bool,
    #[arg(long, hide = true)]
    user: Option<String>,
    #[arg(long, hide = true)]
    ident: Option<String>,
    #[arg(long, hide = true)]
    keyfile: Option<String>,
    #[arg(long, hide = true)]
    secure: bool,
    #[arg(long, hide = true)]
    no_secure: bool,
    #[arg(long, hide = true)]
    init: bool,
    #[arg(long, hide = true)]
    config: Option<String>,
    #[arg(long, hide = true)]
    log_url: Option<String>,
    /// Set any other trait, for example --IPController.ip=0.0.0.0 or --InteractiveShell.colors=nocolor
    #[arg(long = "trait", value_name = "CLASS.NAME=VALUE", value_parser = Trait::parse)]
    traits: Vec<Trait>,
}

/// A trait's class and name, and its value if given.
pub(crate) type Valued<'a> = (&'a str, &'a str, &'a Option<String>);
/// A trait's class, name and value, and whether its flag was given.
pub(crate) type Flag<'a> = (&'a str, &'a str, &'a str, bool);

impl CommonOptions {
    /// All traits: those of the program, the common ones, then explicit traits.
    pub(crate) fn after(&self, valued: &[Valued<'_>], flags: &[Flag<'_>]) -> Vec<Trait> {
        let all_valued = [
            ("BaseParallelApplication", "work_dir", &self.work_dir),
            ("Session", "username", &self.user),
            ("Session", "session", &self.ident),
            ("Session", "keyfile", &self.keyfile),
            ("BaseIPythonApplication", "extra_config_file", &self.config),
            ("BaseParallelApplication", "log_url", &self.log_url),
        ];
        let all_flags = [
            ("BaseParallelApplication", "log_to_file", "True", self.log_to_file),
            ("BaseParallelApplication", "clean_logs", "True", self.clean_logs),
            ("Application", "log_level", "10", self.debug),
            ("Session", "signature_scheme", "hmac-sha256", self.secure),
            ("Session", "key", "", self.no_secure),
            ("BaseIPythonApplication", "copy_config_files", "True", self.init),
        ];
        let valued = valued.iter().chain(&all_valued);
        let valued = valued.filter_map(|(class, name, value)| Some(Trait::of(class, name, value.as_ref()?)));
        let flags = flags.iter().chain(&all_flags).filter(|flag| flag.3);
        let flags = flags.map(|(class, name, value, _)| Trait::of(class, name, value));
        valued.chain(flags).chain(self.traits.iter().cloned()).collect()
    }
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Common {
    pub profile: Option<String>,
    pub profile_dir: Option<PathBuf>,
    pub ipython_dir: Option<PathBuf>,
    pub cluster_id: Option<String>,
    pub log_level: Option<String>,
    pub log_to_file: bool,
    pub clean_logs: bool,
    pub work_dir: Option<PathBuf>,
    /// Notes about ignored options.
    pub notes: Vec<String>,
}

impl Common {
    /// Whether it was one of these.
    pub(crate) fn take(&mut self, option: &Trait) -> Result<bool, Refusal> {
        let path = || option.text().map(PathBuf::from);
        let class = option.class.as_str();
        match (class, option.name.as_str()) {
            ("Session", "key" | "keyfile") => {
                return Err(format!(
                    "--Session.{}: pcluster's controller makes its keys itself and keeps them in the connection files, which only you can \
                     read; leave it out",
                    option.name
                ));
            }
            ("Session", name) => self.ignore(option, &format!("pcluster sets `{name}` of messages itself")),
            ("ProfileDir", "location") => self.profile_dir = path(),
            (_, "profile") => self.profile = option.text(),
            (_, "ipython_dir") => self.ipython_dir = path(),
            (_, "cluster_id") => self.cluster_id = Some(option.value.clone()),
            (_, "log_level") => self.log_level = Some(log_level(&option.value)),
            (_, "log_to_file") => self.log_to_file = option.truth()?,
            (_, "clean_logs") => self.clean_logs = option.truth()?,
            (_, "work_dir") => self.work_dir = path(),
            (_, "log_url") => self.ignore(option, "pcluster has no log server; `pcluster logs` shows all logs of a cluster"),
            (_, "log_format" | "log_datefmt") => self.ignore(option, "the format of pcluster's log is fixed"),
            (_, "extra_config_file" | "copy_config_files" | "auto_create" | "overwrite" | "verbose_crash") => {
                self.ignore(
                    option,
                    "pcluster reads no Python configuration; its settings are in the profile's pcluster.yaml",
                );
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn ignore(&mut self, option: &Trait, why: &str) {
        self.notes.push(format!("{} is ignored: {why}", option.spelled()));
    }

    /// Changes to the working directory, starts the log of `program`, and logs ignored options.
    pub(crate) fn begin(&self, program: &str, place: &ClusterSelection, context: &Context) -> Result<(), CommandError> {
        let level = log_level(self.log_level.as_deref().unwrap_or("info"));
        let level = context.log_level(&level);
        let prefix = format!("{program}-{}-", place.cluster_id);
        let log_dir = place.profile.log_dir();
        if self.clean_logs {
            let files = std::fs::read_dir(&log_dir).into_iter().flatten().flatten();
            let is_old = |name: &str| {
                name.strip_prefix(&prefix)
                    .is_some_and(|rest| rest.strip_suffix(".log").is_some_and(is_number))
            };
            for file in files.filter(|f| f.file_name().to_str().is_some_and(is_old)) {
                // Another process may have removed it already.
                let _ = std::fs::remove_file(file.path());
            }
        }
        match self.log_to_file {
            false => logging::start(level),
            true => {
                place.profile.create()?;
                let path = log_dir.join(format!("{prefix}{}.log", std::process::id()));
                context.note(format!("logging to {}", path.display()));
                logging::start_in(level, &path)
                    .map_err(|e| CommandError::environment(format!("cannot write the log {}: {e}", path.display())))?;
            }
        }
        if let Some(dir) = &self.work_dir {
            std::env::set_current_dir(dir)
                .map_err(|e| CommandError::usage(format!("cannot change to {} (--work-dir): {e}", dir.display())))?;
        }
        for note in &self.notes {
            tracing::warn!("{note}");
        }
        Ok(())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The selected cluster.
#[derive(Debug, PartialEq)]
pub(crate) struct ClusterSelection {
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// The content of the engine's connection file, if passed by a launcher.
    pub connection_info: Option<String>,
}

impl ClusterSelection {
    /// The command line overrides the environment of a launcher.
    pub(crate) fn find(
        words: &Common,
        profile_dir: Option<PathBuf>,
        environment: LauncherEnvironment,
        context: &Context,
    ) -> Result<ClusterSelection, CommandError> {
        let named = |id: Option<String>| match context.cluster_id.as_str() {
            "" => words.cluster_id.clone().or(id).unwrap_or_default(),
            id => id.to_string(),
        };
        let place = |profile, cluster_id, connection_info| ClusterSelection {
            profile,
            cluster_id,
            connection_info,
        };
        if let Some(dir) = profile_dir.or_else(|| words.profile_dir.clone()) {
            return Ok(place(ProfileDir::at(&dir), named(None), None));
        }
        let is_usual = std::env::var("PCLUSTER_PROFILE").is_ok_and(|usual| usual == context.profile);
        if words.profile.is_none() && (!context.profile_named || is_usual) {
            if let Some(dir) = environment.profile_dir {
                let id = named(environment.cluster_id);
                return Ok(place(ProfileDir::at(&dir), id, environment.connection_info));
            }
            let profile = ProfileDir::named(&context.profile, ipython_dir(words, context))?;
            return Ok(place(profile, named(environment.cluster_id), environment.connection_info));
        }
        let name = words.profile.as_deref().unwrap_or(&context.profile);
        let profile = ProfileDir::named(name, ipython_dir(words, context))?;
        Ok(place(profile, named(None), None))
    }
}

fn ipython_dir<'a>(words: &'a Common, context: &'a Context) -> Option<&'a Path> {
    words.ipython_dir.as_deref().or(context.ipython_dir.as_deref())
}

/// `10`, `DEBUG` or `debug`: a number or name of Python's levels, or a filter of pcluster.
pub(crate) fn log_level(option: &str) -> String {
    let level = match option.parse::<i64>() {
        Ok(..=9) => "trace",
        Ok(10..=19) => "debug",
        Ok(20..=29) => "info",
        Ok(30..=39) => "warn",
        Ok(_) => "error",
        Err(_) => match option.to_ascii_uppercase().as_str() {
            "DEBUG" => "debug",
            "INFO" => "info",
            "WARN" | "WARNING" => "warn",
            "ERROR" | "CRITICAL" | "FATAL" => "error",
            _ => return option.to_string(),
        },
    };
    level.to_string()
}

/// The environment variables of ipyparallel's launchers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct LauncherEnvironment {
    pub profile_dir: Option<PathBuf>,
    pub cluster_id: Option<String>,
    /// The content of the engine's connection file.
    pub connection_info: Option<String>,
}

impl LauncherEnvironment {
    /// Whether this process was started by one of ipyparallel's launchers.
    pub(crate) fn is_there(&self) -> bool {
        *self != LauncherEnvironment::default()
    }

    pub(crate) fn of_this_process() -> LauncherEnvironment {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        LauncherEnvironment {
            profile_dir: variable("IPP_PROFILE_DIR").map(PathBuf::from),
            cluster_id: variable("IPP_CLUSTER_ID"),
            connection_info: variable("IPP_CONNECTION_INFO"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_are_those_of_python_or_ours() {
        let all = [
            "10",
            "20",
            "30",
            "50",
            "DEBUG",
            "Warning",
            "CRITICAL",
            "trace",
            "info,pcluster=debug",
        ];
        let levels: Vec<String> = all.iter().map(|l| log_level(l)).collect();
        assert_eq!(
            levels,
            [
                "debug",
                "info",
                "warn",
                "error",
                "debug",
                "warn",
                "error",
                "trace",
                "info,pcluster=debug"
            ]
        );
    }

    #[test]
    fn the_command_line_outranks_the_launchers_environment() {
        let environment = || LauncherEnvironment {
            profile_dir: Some("/p/profile_theirs".into()),
            cluster_id: Some("c1".into()),
            connection_info: Some("{}".into()),
        };
        let mut context = Context::for_tests(Path::new("/ipython"));
        let none = Common::default();
        let found = ClusterSelection::find(&none, None, environment(), &context).unwrap();
        assert_eq!(found.profile.path(), Path::new("/p/profile_theirs"));
        assert_eq!((found.cluster_id.as_str(), found.connection_info.as_deref()), ("c1", Some("{}")));
        let found = ClusterSelection::find(&none, Some("/q/profile_mine".into()), environment(), &context).unwrap();
        assert_eq!(found.profile.path(), Path::new("/q/profile_mine"));
        assert_eq!((found.cluster_id.as_str(), found.connection_info), ("", None));
        (context.profile, context.profile_named) = ("named".into(), true);
        context.cluster_id = "mine".into();
        let found = ClusterSelection::find(&none, None, environment(), &context).unwrap();
        assert_eq!(found.profile.path(), Path::new("/ipython/profile_named"));
        assert_eq!((found.cluster_id.as_str(), found.connection_info), ("mine", None));
    }

    #[test]
    fn a_key_on_the_command_line_is_refused() {
        let refusal = Common::default().take(&Trait::of("Session", "key", "secret")).unwrap_err();
        assert!(!refusal.contains("secret"), "{refusal}");
    }
}
