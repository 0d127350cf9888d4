//! The environment is an input to a scheduler's commands. The data here and in each system's row
//! defines which variables may affect them; the launcher removes the rest before it runs a command.
//!
//! A submission keeps a site's defaults for options that pcluster does not set (`SBATCH_ACCOUNT` if
//! no account is given). It loses variables that would override the script or change what the
//! command prints. All other commands lose every option.
use super::CommandLine;
use super::table::SystemTable;

/// Names of variables; a trailing `*` matches any suffix.
pub(crate) type Names = &'static [&'static str];

/// The variables removed for one kind of command: those in `removed` and not in `kept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub removed: Names,
    pub kept: Names,
}

/// The variables removed for a system's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EnvironmentRules {
    pub submissions: Rule,
    /// Queries, cancellations and history.
    pub queries: Rule,
    /// Variables that override directives in the script, by option.
    pub options: &'static [ScriptOption],
}

impl EnvironmentRules {
    /// Removes the same variables for all commands.
    pub(crate) const fn removing(removed: Names) -> EnvironmentRules {
        let rule = Rule { removed, kept: &[] };
        EnvironmentRules {
            submissions: rule,
            queries: rule,
            options: &[],
        }
    }
}

/// An option of a script (`--time`, `-t`) and the variables that would override or contradict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScriptOption {
    pub long: &'static str,
    pub short: &'static str,
    pub variables: Names,
}

/// Prepares the submission of `script`: removes variables that would override it. The locale stays,
/// since the job may inherit the environment.
pub(crate) fn for_submission(table: &SystemTable, mut command: CommandLine, script: &str) -> CommandLine {
    let rules = table.environment;
    let overridden = options_of(script, table.directive_prefix)
        .filter_map(|word| option(rules.options, word))
        .flat_map(|option| option.variables);
    command.removed_vars = names(rules.submissions.removed.iter().chain(overridden));
    command.kept_vars = names(rules.submissions.kept);
    // A directive in the script takes precedence over `kept`.
    command.kept_vars.retain(|kept| !command.removed_vars.contains(kept));
    command
}

/// Prepares a query or cancellation so that the environment does not change its output.
pub(crate) fn for_query(table: &SystemTable, mut command: CommandLine) -> CommandLine {
    let rule = table.environment.queries;
    command.removed_vars = names(rule.removed);
    command.in_c_locale = true;
    command.kept_vars = names(rule.kept);
    command
}

fn names<'a>(names: impl IntoIterator<Item = &'a &'static str>) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = names.into_iter().copied().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The words of a script's directive lines that may be options, without their values.
fn options_of<'a>(script: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = script.lines().filter_map(move |line| line.strip_prefix(prefix));
    let words = lines
        .filter(move |rest| !prefix.is_empty() && rest.starts_with(char::is_whitespace))
        .flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with('-'))
}

/// `--time=5`, `--time`, `-t5`, `-t`; long options may be abbreviated.
fn option<'a>(options: &'a [ScriptOption], word: &str) -> Option<&'a ScriptOption> {
    let Some(long) = word.strip_prefix("--") else {
        let letter = word.get(..2)?;
        return options.iter().find(|option| option.short == letter);
    };
    let long = long.split('=').next().unwrap_or_default();
    let exact = options.iter().find(|option| option.long == long);
    exact.or_else(|| options.iter().find(|option| !long.is_empty() && option.long.starts_with(long)))
}

/// Whether this variable is removed, given `removed_vars` and `kept_vars`.
pub(crate) fn is_removed(name: &str, removed_vars: &[&str], kept_vars: &[&str]) -> bool {
    let is_in = |names: &[&str]| {
        names.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == *pattern,
        })
    };
    is_in(removed_vars) && !is_in(kept_vars)
}

#[cfg(test)]
mod tests {
    use super::super::{SYSTEMS, by_name};
    use super::*;

    /// The variables among these that a submission of this script inherits.
    fn inherited_by_submission(system: &str, script: &str, variables: &[&'static str]) -> Vec<&'static str> {
        let command = for_submission(by_name(system).unwrap().table(), CommandLine::default(), script);
        let stays = |name: &&&str| !is_removed(name, &command.removed_vars, &command.kept_vars);
        variables.iter().filter(stays).copied().collect()
    }

    #[test]
    fn script_options_are_not_overridden_and_other_site_defaults_stay() {
        let all = [
            "SBATCH_ACCOUNT",
            "SBATCH_ARRAY_INX",
            "SBATCH_JOB_NAME",
            "SBATCH_MEM_PER_CPU",
            "SBATCH_MEM_PER_NODE",
            "SBATCH_PARTITION",
            "SBATCH_TIMELIMIT",
            "SBATCH_WAIT",
            "SBATCH_WAIT_ALL_NODES",
            "SLURM_CLUSTERS",
            "SLURM_CONF",
            "SLURM_EXIT_ERROR",
            "SLURM_HINT",
            "SLURM_MEM_PER_CPU",
            "PATH",
        ];
        let site = [
            "SBATCH_ACCOUNT",
            "SBATCH_MEM_PER_CPU",
            "SBATCH_MEM_PER_NODE",
            "SBATCH_PARTITION",
            "SBATCH_TIMELIMIT",
            "SBATCH_WAIT_ALL_NODES",
            "SLURM_CLUSTERS",
            "SLURM_CONF",
            "SLURM_HINT",
            "PATH",
        ];
        assert_eq!(inherited_by_submission("slurm", "#!/bin/bash\n#SBATCH --job-name=x\n", &all), site);
        let script = "#SBATCH --time=5 -p batch\n#SBATCH --mem 3M\n#SBATCH -Mwest\n#SBATCH --acc=pi --hint=nomultithread\n##SBATCH -x\n";
        assert_eq!(
            inherited_by_submission("slurm", script, &all),
            ["SBATCH_WAIT_ALL_NODES", "SLURM_CONF", "PATH"]
        );
    }

    #[test]
    fn queries_get_no_options_but_their_systems_configuration() {
        let cases = [
            ("slurm", "SQUEUE_PARTITION", "SLURM_CONF"),
            ("slurm", "SLURM_CLUSTERS", "SLURM_JWT"),
            ("slurm", "SCANCEL_STATE", "SBATCH_ACCOUNT"),
            ("slurm", "SLURM_TIME_FORMAT", "PATH"),
            ("sge", "SGE_LONG_QNAMES", "SGE_ROOT"),
            ("sge", "SGE_DEBUG_LEVEL", "SGE_CELL"),
            ("pbs", "PBS_DPREFIX", "PBS_DEFAULT"),
            ("pbs", "PBS_QSTAT_NO_COMPLETE", "PBS_SERVER"),
            ("lsf", "LSB_BJOBS_FORMAT", "LSF_ENVDIR"),
            ("htcondor", "_CONDOR_CONDOR_Q_ONLY_MY_JOBS", "CONDOR_CONFIG"),
        ];
        for (system, removed, kept) in cases {
            let command = for_query(by_name(system).unwrap().table(), CommandLine::default());
            assert!(is_removed(removed, &command.removed_vars, &command.kept_vars), "{system} {removed}");
            assert!(!is_removed(kept, &command.removed_vars, &command.kept_vars), "{system} {kept}");
        }
        for system in SYSTEMS {
            assert!(for_query(by_name(system).unwrap().table(), CommandLine::default()).in_c_locale);
            let submission = for_submission(by_name(system).unwrap().table(), CommandLine::default(), "");
            assert!(!submission.in_c_locale, "the job may inherit the locale");
        }
    }
}
