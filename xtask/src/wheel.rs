//! `cargo xtask wheel`: the Python package of `python/`, with the program in it, as a wheel in `target/wheels/`.
//!
//! A release build by default. Tests install one of the existing development build.
use crate::Places;
use crate::python;
use crate::run::{captured, echo, program, status};
use std::fs;
use std::path::{Path, PathBuf};

/// Builds the wheel, of the development build if `profile` is `dev`; returns its path.
pub fn run(places: &Places, profile: &str) -> Result<PathBuf, String> {
    let maturin = maturin(places)?;
    // A folder of its own, so that the one wheel in it is the one just built.
    let folder = places.target.join("wheels").join(profile);
    let _ = fs::remove_dir_all(&folder);
    let folder_text = folder.to_string_lossy().into_owned();
    let project = places.root.join("python");
    let words = [maturin.as_str(), "build", "--profile", profile, "--out", &folder_text];
    echo(&format!("cd python && {}", words.join(" ")));
    let mut command = program(&project, &words);
    // Reuses the build of the other tasks.
    command.env("CARGO_TARGET_DIR", &places.target);
    if !status(&mut command)?.success() {
        return Err("maturin could not build the wheel (see above)".into());
    }
    let wheel = the_wheel_in(&folder)?;
    println!("\n{}", wheel.display());
    Ok(wheel)
}

/// The program maturin: from the PATH, else from a virtual environment under target/ that is made for it.
fn maturin(places: &Places) -> Result<String, String> {
    let runs = |maturin: &str| captured(&mut program(&places.root, &[maturin, "--version"])).is_ok();
    if runs("maturin") {
        return Ok("maturin".into());
    }
    let folder = places.target.join("maturin");
    let maturin = folder.join("bin/maturin").to_string_lossy().into_owned();
    if runs(&maturin) {
        return Ok(maturin);
    }
    let _ = fs::remove_dir_all(&folder);
    python::make(places, &python::find(places)?, &folder.to_string_lossy())?;
    let pip = folder.join("bin/python").to_string_lossy().into_owned();
    let words = [
        &pip,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "maturin>=1.9,<2",
    ];
    echo(&words.join(" "));
    match status(&mut program(&places.root, &words))?.success() {
        true => Ok(maturin),
        false => Err("pip could not install maturin, which builds the wheel (see above)".into()),
    }
}

fn the_wheel_in(folder: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
    let mut wheels = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "whl"));
    match (wheels.next(), wheels.next()) {
        (Some(wheel), None) => Ok(wheel),
        (None, _) => Err(format!("maturin has left no wheel in {}", folder.display())),
        _ => Err(format!("there is more than one wheel in {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_wheel_of_a_folder() {
        let folder = std::env::temp_dir().join(format!("xtask-wheel-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(the_wheel_in(&folder).unwrap_err().contains("no wheel"));
        fs::write(folder.join("a.whl"), "").unwrap();
        fs::write(folder.join("a.txt"), "").unwrap();
        assert_eq!(the_wheel_in(&folder), Ok(folder.join("a.whl")));
        fs::write(folder.join("b.whl"), "").unwrap();
        assert!(the_wheel_in(&folder).unwrap_err().contains("more than one"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
