//! Translates the command lines of `ipcontroller` and `ipengine`, so that ipyparallel's launchers can start `pcluster controller`
//! and `pcluster engine` instead.
//!
//! Parts: [`common`] (profile, log, working directory), [`controller`], [`engine`]. All options are traits of Python classes,
//! `--Class.trait=value`; some have short aliases. Each is translated, ignored with a reason, or rejected with an alternative.
pub(crate) mod common;
pub(crate) mod controller;
pub(crate) mod engine;

use std::ffi::OsString;

/// One `--Class.trait=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trait {
    pub class: String,
    pub name: String,
    pub value: String,
}

impl Trait {
    /// A trait from its alias.
    pub(crate) fn of(class: &str, name: &str, value: impl ToString) -> Trait {
        Trait {
            class: class.into(),
            name: name.into(),
            value: value.to_string(),
        }
    }

    /// From `Class.trait=value`.
    pub(crate) fn parse(text: &str) -> Result<Trait, String> {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| format!("--{text} has no value; it is --{text}=VALUE"))?;
        let (class, name) = path
            .rsplit_once('.')
            .ok_or_else(|| format!("{path} is not the name of a trait, Class.trait"))?;
        Ok(Trait::of(class, name, value))
    }

    /// As typed.
    pub(crate) fn spelled(&self) -> String {
        format!("--{}.{}={}", self.class, self.name, self.value)
    }

    /// A boolean of traitlets.
    pub(crate) fn truth(&self) -> Result<bool, String> {
        match self.value.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{}: {:?} is neither True nor False", self.spelled(), self.value)),
        }
    }

    /// A non-negative number.
    pub(crate) fn number(&self) -> Result<f64, String> {
        let number = self.value.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        number.ok_or_else(|| format!("{}: {:?} is not a number", self.spelled(), self.value))
    }

    /// A duration in seconds, converted to milliseconds.
    pub(crate) fn seconds(&self) -> Result<u64, String> {
        Ok((self.number()? * 1000.0) as u64)
    }

    pub(crate) fn text(&self) -> Option<String> {
        Some(self.value.clone()).filter(|value| !value.is_empty())
    }
}

/// How a trait without a counterpart is handled.
pub(crate) type Refusal = String;

/// The command line of `pcluster controller` and `pcluster engine` with each `--Class.trait=value` (or `--Class.trait value`)
/// as `--trait=Class.trait=value`, which clap can parse. Other command lines are unchanged. `is_flag`: whether an
/// option takes no value.
pub(crate) fn traits_as_options(words: impl IntoIterator<Item = OsString>, is_flag: impl Fn(&str) -> bool) -> Vec<OsString> {
    let mut words = words.into_iter().peekable();
    let mut taken = Vec::new();
    let mut is_theirs = false;
    while let Some(word) = words.next() {
        // `ipcluster start … ""` passes an empty argument on; after an option it is its value.
        let is_value = taken.last().is_some_and(|last: &OsString| {
            let last = last.to_string_lossy();
            last.starts_with('-') && !last.contains('=') && !is_flag(&last)
        });
        if is_theirs && word.is_empty() && !is_value {
            continue;
        }
        is_theirs |= word == "controller" || word == "engine";
        let path = word
            .to_str()
            .and_then(|w| w.strip_prefix("--"))
            .filter(|w| is_theirs && is_trait(w));
        let Some(path) = path else {
            taken.push(word);
            continue;
        };
        let mut option = OsString::from(format!("--trait={path}"));
        if !path.contains('=') {
            option.push("=");
            match words.next_if(|next| !next.to_string_lossy().starts_with("--")) {
                Some(value) => option.push(value),
                None => option.push("True"),
            }
        }
        taken.push(option);
    }
    taken
}

/// `Class.trait`, optionally with `=value`: Python classes begin with a capital letter, options do not.
fn is_trait(text: &str) -> bool {
    let path = text.split('=').next().unwrap_or_default();
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_alphanumeric() || c == '_');
    path.starts_with(|c: char| c.is_ascii_uppercase()) && path.contains('.') && path.split('.').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let words = traits_as_options(line.split(' ').map(OsString::from), |option| option == "--quiet");
        words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn traits_become_options_of_the_two_commands_only() {
        assert_eq!(
            rewritten("pcluster controller --IPController.ip=* --ping=250"),
            "pcluster controller --trait=IPController.ip=* --ping=250"
        );
        assert_eq!(
            rewritten("pcluster engine --IPEngine.use_mpi --Session.x a --file f"),
            "pcluster engine --trait=IPEngine.use_mpi=True --trait=Session.x=a --file f"
        );
        assert_eq!(rewritten("pcluster controller "), "pcluster controller");
        assert_eq!(rewritten("pcluster engine --file f  "), "pcluster engine --file f");
        assert_eq!(
            rewritten("pcluster controller  --ping=1  --A.b= --quiet  --log x"),
            "pcluster controller --ping=1 --trait=A.b= --quiet --log x"
        );
        let other = "pcluster controller --cluster-id  --ping=1";
        assert_eq!(rewritten(other), other);
        let other = "pcluster map --IPController.ip=* controller";
        assert_eq!(rewritten(other), other);
        let other = "pcluster controller --set a.b=c --Nothing --lower.case=1 --A..b=1";
        assert_eq!(rewritten(other), other);
    }

    #[test]
    fn values_are_parsed_like_in_traitlets() {
        let t = Trait::parse("IPController.enable_curve=False").unwrap();
        assert_eq!((t.class.as_str(), t.name.as_str()), ("IPController", "enable_curve"));
        assert_eq!(t.truth(), Ok(false));
        assert_eq!(Trait::parse("A.b=x=y").unwrap().value, "x=y");
        assert_eq!(Trait::of("A", "b", "1.5").seconds(), Ok(1500));
        assert_eq!(
            Trait::of("A", "b", "many").number(),
            Err("--A.b=many: \"many\" is not a number".to_string())
        );
        assert!(Trait::of("A", "b", "-1").number().is_err());
        assert!(Trait::parse("A.b").is_err());
    }
}
