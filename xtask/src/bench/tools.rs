//! What the comparison runs: pcluster and `load` built for speed, the peers in a virtual environment under target/.
use crate::Places;
use crate::python;
use crate::run::{captured, echo, program};
use std::path::{Path, PathBuf};

/// From PyPI.
const PEERS: &[&str] = &["ipyparallel", "parsl", "distributed", "hyperqueue"];

pub struct Tools {
    pub root: PathBuf,
    /// Where everything is made.
    pub folder: PathBuf,
    pub pcluster: PathBuf,
    /// `benches/load.rs`.
    pub load: PathBuf,
    /// The interpreter of the virtual environment; engines of all contenders run in it.
    pub python: PathBuf,
    /// What could not be had, for the page.
    pub missing: Vec<String>,
    /// `parsl 2026.10.26`, …
    pub versions: Vec<String>,
    pub has_parallel: bool,
}

impl Tools {
    /// For ipyparallel's client alone: no other peers, and no `load`; `development`: the build that `cargo build` makes.
    pub fn for_client(places: &Places, development: bool) -> Result<Tools, String> {
        let folder = made(places)?;
        let pcluster = build_pcluster(places, development)?;
        let (mut missing, mut versions) = (Vec::new(), Vec::new());
        let python = environment(
            places,
            &folder.join("peers"),
            &["ipyparallel", "numpy"],
            &mut missing,
            &mut versions,
        )?;
        Ok(Tools {
            root: places.root.clone(),
            pcluster,
            load: PathBuf::new(),
            python,
            missing,
            versions,
            has_parallel: false,
            folder,
        })
    }

    /// For pcluster alone; `development`: the build that `cargo build` makes.
    pub fn alone(places: &Places, python: &str, development: bool) -> Result<Tools, String> {
        let folder = made(places)?;
        let pcluster = build_pcluster(places, development)?;
        Ok(Tools {
            root: places.root.clone(),
            folder,
            pcluster,
            load: PathBuf::new(),
            python: python.into(),
            missing: Vec::new(),
            versions: Vec::new(),
            has_parallel: false,
        })
    }

    pub fn prepare(places: &Places) -> Result<Tools, String> {
        let folder = made(places)?;
        let load = build(places)?;
        let mut missing = Vec::new();
        let mut versions = Vec::new();
        let python = environment(places, &folder.join("peers"), PEERS, &mut missing, &mut versions)?;
        let parallel = captured(&mut program(&places.root, &["parallel", "--version"]));
        match &parallel {
            Ok(said) => versions.extend(said.lines().next().map(str::to_string)),
            Err(_) => missing.push("GNU parallel (not installed; on Debian: apt-get install parallel)".into()),
        }
        Ok(Tools {
            root: places.root.clone(),
            pcluster: places.target.join("release/pcluster"),
            load,
            python,
            missing,
            versions,
            has_parallel: parallel.is_ok(),
            folder,
        })
    }
}

/// Gives back where it is.
fn build_pcluster(places: &Places, development: bool) -> Result<PathBuf, String> {
    let (words, pcluster): (&[&str], _) = match development {
        true => (&["cargo", "build", "--bin", "pcluster"], places.target.join("debug/pcluster")),
        false => (
            &["cargo", "build", "--release", "--bin", "pcluster"],
            places.target.join("release/pcluster"),
        ),
    };
    echo(&words.join(" "));
    captured(&mut program(&places.root, words))?;
    Ok(pcluster)
}

/// Builds for speed; gives back where `load` is.
fn build(places: &Places) -> Result<PathBuf, String> {
    let words = ["cargo", "build", "--release", "--bin", "pcluster", "--bench", "load"];
    echo(&words.join(" "));
    let mut command = program(&places.root, &words);
    let said = captured(command.arg("--message-format=json-render-diagnostics"))?;
    executable(&said, "load").ok_or_else(|| "cargo does not say where it has put benches/load.rs".into())
}

/// Of cargo's JSON lines, the one that names the bench target's file.
fn executable(said: &str, target: &str) -> Option<PathBuf> {
    let of_target = |line: &&str| line.contains("\"kind\":[\"bench\"]") && line.contains(&format!("\"name\":\"{target}\""));
    let line = said.lines().find(of_target)?;
    let (_, path) = line.split_once("\"executable\":\"")?;
    Some(PathBuf::from(path.split_once('"')?.0))
}

fn made(places: &Places) -> Result<PathBuf, String> {
    let folder = places.target.join("bench");
    std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    Ok(folder)
}

fn environment(
    places: &Places,
    folder: &Path,
    peers: &[&str],
    missing: &mut Vec<String>,
    versions: &mut Vec<String>,
) -> Result<PathBuf, String> {
    let python = folder.join("bin/python");
    if !python.exists() {
        python::make(places, &python::find(places)?, &folder.to_string_lossy())?;
    }
    let path = python.to_string_lossy().into_owned();
    for peer in peers {
        let show = format!("from importlib.metadata import version; print(version({peer:?}))");
        let mut asked = captured(&mut program(&places.root, &[&path, "-c", &show]));
        if asked.is_err() {
            let words = [&path, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer];
            echo(&words.join(" "));
            if let Err(why) = captured(&mut program(&places.root, &words)) {
                println!("{why}");
            }
            asked = captured(&mut program(&places.root, &[&path, "-c", &show]));
        }
        match asked {
            Ok(version) => versions.push(format!("{peer} {}", version.trim())),
            Err(_) => missing.push(format!("{peer} (could not be installed from PyPI)")),
        }
    }
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_a_bench_is() {
        let said = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"load"},"executable":"/t/no"}
{"reason":"compiler-artifact","target":{"kind":["bench"],"crate_types":["bin"],"name":"load"},"executable":"/t/release/deps/load-1","fresh":true}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(said, "load"), Some(PathBuf::from("/t/release/deps/load-1")));
        assert_eq!(executable(said, "other"), None);
    }
}
