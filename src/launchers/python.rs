//! The Python interpreter of the engines.
use super::LaunchError;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The oldest version that the worker supports.
pub(super) const MIN_VERSION: (u32, u32) = (3, 8);

/// The interpreter: the given one, else that of the active virtual or conda environment, else
/// `python3` on the PATH.
pub(crate) fn resolve(given: Option<&str>) -> String {
    if let Some(given) = given {
        return given.to_string();
    }
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let Some(prefix) = std::env::var_os(variable).filter(|p| !p.is_empty()) else {
            continue;
        };
        let python = Path::new(&prefix).join("bin/python");
        if python.exists() {
            return python.to_string_lossy().into_owned();
        }
    }
    "python3".into()
}

/// Checks that the interpreter runs and is new enough.
pub(crate) fn check(python: &str) -> Result<(), LaunchError> {
    let version = run_code(python, "import sys; print('%d.%d.%d' % sys.version_info[:3])")
        .map_err(|error| error.into_error(python, |python, why| LaunchError::NoPython { python, why }))?;
    let mut numbers = version.trim().split('.').map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= MIN_VERSION => Ok(()),
        (Some(_), Some(_)) => Err(LaunchError::OldPython {
            python: python.into(),
            version: version.trim().into(),
        }),
        _ => Err(LaunchError::NoPython {
            python: python.into(),
            why: format!("its version query returned {:?}", version.trim()),
        }),
    }
}

/// Checks that the interpreter can run an `ipengine`.
pub(crate) fn check_ipyparallel(python: &str) -> Result<(), LaunchError> {
    match run_code(python, "import ipyparallel.engine") {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_error(python, |python, why| LaunchError::NoIpyparallel { python, why })),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum ProbeError {
    /// Interrupted by Ctrl-C: the state of the interpreter is unknown.
    Interrupted,
    Failed(String),
}

impl ProbeError {
    fn into_error(self, python: &str, failed: impl FnOnce(String, String) -> LaunchError) -> LaunchError {
        match self {
            ProbeError::Interrupted => LaunchError::Interrupted { python: python.into() },
            ProbeError::Failed(why) => failed(python.into(), why),
        }
    }
}

/// Runs a line of code; returns its output, or the last line of the error.
fn run_code(python: &str, code: &str) -> Result<String, ProbeError> {
    let output = Command::new(python)
        .args(["-c", code])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| ProbeError::Failed(e.to_string()))?;
    parse_output(&output)
}

fn parse_output(output: &Output) -> Result<String, ProbeError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if output.status.signal() == Some(Signal::SIGINT as i32) {
        return Err(ProbeError::Interrupted);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(ProbeError::Failed(match stderr.lines().rfind(|l| !l.trim().is_empty()) {
        Some(last) => last.to_string(),
        None => output.status.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::write_program;
    use super::*;

    /// A program that stands in for an interpreter.
    fn fake_python(dir: &Path, script: &str) -> String {
        let path = dir.join("python");
        write_program(&path, script);
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn an_interrupted_python_is_distinguished_from_a_failing_one() {
        let ended = |status: i32| {
            parse_output(&Output {
                status: ExitStatusExt::from_raw(status),
                stdout: Vec::new(),
                stderr: b"Traceback (most recent call last):\nKeyboardInterrupt\n".to_vec(),
            })
        };
        assert_eq!(ended(Signal::SIGINT as i32), Err(ProbeError::Interrupted));
        assert_eq!(ended(1 << 8), Err(ProbeError::Failed("KeyboardInterrupt".into())));
    }

    #[test]
    fn errors_name_a_missing_old_or_invalid_python() {
        let dir = tempfile::tempdir().unwrap();
        let error = check("/nonexistent/python").unwrap_err().to_string();
        assert!(
            error.starts_with("cannot run the Python interpreter /nonexistent/python: No such file"),
            "{error}"
        );
        let python = fake_python(dir.path(), "echo 3.7.9");
        assert_eq!(
            check(&python).unwrap_err().to_string(),
            format!("the Python interpreter {python} is version 3.7.9; pcluster requires 3.8 or later")
        );
        for version in ["3.8.0", "3.14.1", "4.0.0"] {
            check(&fake_python(dir.path(), &format!("echo {version}"))).unwrap();
        }
        let python = fake_python(dir.path(), "echo hello");
        assert!(matches!(check(&python), Err(LaunchError::NoPython { .. })));
    }

    #[test]
    fn an_interpreter_without_ipyparallel_is_reported_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let python = fake_python(
            dir.path(),
            "echo Traceback >&2; echo \"ModuleNotFoundError: No module named 'ipyparallel'\" >&2; exit 1",
        );
        let error = check_ipyparallel(&python).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "an ipengine needs the package ipyparallel, which {python} cannot import: ModuleNotFoundError: No module named 'ipyparallel'"
            )
        );
        assert!(error.hint().unwrap().contains(&format!("{python} -m pip install ipyparallel")));
    }
}
