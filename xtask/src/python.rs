//! Finding a Python, and the virtual environment of the tests.
use crate::Places;
use crate::run::{captured, echo, program, status};
use std::fs;
use std::path::{Path, PathBuf};

/// The oldest Python that the worker runs on.
const OLDEST: (u32, u32) = (3, 8);
const REQUIREMENTS: &str = "ci/requirements.txt";

/// `$PYTHON`, else `python3`; its version was asked.
pub fn find(places: &Places) -> Result<String, String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let hint = "install Python 3.8 or newer, or name one in the environment variable PYTHON";
    let mut ask = program(&places.root, &[&python, "-c", "import sys; print(*sys.version_info[:2])"]);
    let output = captured(&mut ask).map_err(|e| format!("{e}; {hint}"))?;
    let version = parse_version(&output).ok_or_else(|| format!("{python} did not report its version ({output:?}); {hint}"))?;
    match version >= OLDEST {
        true => Ok(python),
        false => Err(format!("{python} is Python {}.{}, too old; {hint}", version.0, version.1)),
    }
}

fn parse_version(output: &str) -> Option<(u32, u32)> {
    let (major, minor) = output.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The Python of a virtual environment under target/ that has what `ci/requirements.txt` names. Made once; made again
/// when that file changes.
pub fn test_environment(places: &Places) -> Result<PathBuf, String> {
    let python = find(places)?;
    let wanted = fs::read_to_string(places.root.join(REQUIREMENTS)).map_err(|e| format!("cannot read {REQUIREMENTS}: {e}"))?;
    let folder = places.target.join("python");
    let stamp = folder.join("installed.txt");
    let venv_python = folder.join("bin/python");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && is_alive(places, &venv_python) {
        return Ok(venv_python);
    }
    let _ = fs::remove_dir_all(&folder);
    let folder_text = folder.to_string_lossy().into_owned();
    make(places, &python, &folder_text)?;
    let venv = venv_python.to_string_lossy().into_owned();
    echo(&format!("{venv} -m pip install -r {REQUIREMENTS}"));
    let words = [
        venv.as_str(),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        REQUIREMENTS,
    ];
    if !status(&mut program(&places.root, &words))?.success() {
        return Err(format!("pip could not install what {REQUIREMENTS} names (see above)"));
    }
    fs::write(&stamp, wanted).map_err(|e| format!("cannot write {}: {e}", stamp.display()))?;
    Ok(venv_python)
}

fn is_alive(places: &Places, python: &Path) -> bool {
    captured(&mut program(
        &places.root,
        &[&python.to_string_lossy(), "-c", "import ipyparallel, pytest"],
    ))
    .is_ok()
}

/// `python -m venv`. Debian keeps half of venv in a package of its own, which root may be able to install.
pub fn make(places: &Places, python: &str, folder: &str) -> Result<(), String> {
    let venv = || {
        echo(&format!("{python} -m venv {folder}"));
        captured(&mut program(&places.root, &[python, "-m", "venv", folder]))
    };
    let Err(why) = venv() else { return Ok(()) };
    let is_root = captured(&mut program(&places.root, &["id", "-u"])).is_ok_and(|id| id.trim() == "0");
    let has_apt = captured(&mut program(&places.root, &["apt-get", "--version"])).is_ok();
    if !(is_root && has_apt) {
        return Err(format!("{why}\n(on Debian and Ubuntu: apt-get install python3-venv)"));
    }
    for words in [
        &["apt-get", "update", "-qq"][..],
        &["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-venv"],
    ] {
        echo(&words.join(" "));
        captured(program(&places.root, words).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    venv().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(parse_version("3 11\n") >= Some(OLDEST));
        assert!(parse_version("3 7\n") < Some(OLDEST));
        assert_eq!(parse_version("Python 3.11"), None);
    }
}
