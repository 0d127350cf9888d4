//! The programs of a comparison: pcluster and `load`, built for it, and the peers in a virtual environment under target/.
use crate::Places;
use crate::python;
use crate::run::{captured, echo, program};
use std::path::{Path, PathBuf};

pub struct Tools {
    pub root: PathBuf,
    /// For everything that the benchmark writes.
    pub folder: PathBuf,
    pub pcluster: PathBuf,
    /// `benches/load.rs`, if built.
    load: PathBuf,
    /// The interpreter of the virtual environment, which the engines of all contenders use.
    pub python: PathBuf,
    pub development: bool,
    /// Unavailable programs with the reason, for the page.
    pub missing: Vec<String>,
    /// `parsl 2026.10.26`, …
    pub versions: Vec<String>,
}

impl Tools {
    /// Builds pcluster and, with `load`, `benches/load.rs`. Without `peers` (packages of PyPI) engines use the default Python.
    pub fn prepare(places: &Places, development: bool, peers: &[&str], load: bool) -> Result<Tools, String> {
        let folder = places.target.join("bench");
        std::fs::create_dir_all(&folder).map_err(|e| format!("cannot create {}: {e}", folder.display()))?;
        let mut words = vec!["cargo", "build", "--bin", "pcluster"];
        words.extend((!development).then_some("--release"));
        words.extend(
            load.then_some(["--bench", "load", "--message-format=json-render-diagnostics"])
                .into_iter()
                .flatten(),
        );
        echo(&words.join(" "));
        let output = captured(&mut program(&places.root, &words))?;
        let mut tools = Tools {
            root: places.root.clone(),
            pcluster: places.target.join(if development { "debug/pcluster" } else { "release/pcluster" }),
            load: executable(&output, "load").unwrap_or_default(),
            python: folder.join("peers/bin/python"),
            folder,
            development,
            missing: Vec::new(),
            versions: Vec::new(),
        };
        if load && tools.load.as_os_str().is_empty() {
            return Err("cargo did not report the location of benches/load.rs".into());
        }
        if peers.is_empty() {
            tools.python = python::find(places)?.into();
        } else if !tools.python.exists() {
            python::make(places, &python::find(places)?, &tools.folder.join("peers").to_string_lossy())?;
        }
        peers.iter().for_each(|peer| tools.install(peer));
        Ok(tools)
    }

    fn install(&mut self, peer: &str) {
        let python = self.python.to_string_lossy().into_owned();
        let show = format!("from importlib.metadata import version; print(version({peer:?}))");
        let version = || captured(&mut program(&self.root, &[&python, "-c", &show]));
        let installed = version().or_else(|_| {
            let words = [&python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer];
            echo(&words.join(" "));
            captured(&mut program(&self.root, &words)).and_then(|_| version())
        });
        match installed {
            Ok(version) => self.versions.push(format!("{peer} {}", version.trim())),
            Err(why) => {
                println!("{why}");
                self.missing.push(format!("{peer} (could not be installed from PyPI)"));
            }
        }
    }

    /// Runs a script of `benches/peers`.
    pub fn peer(&self, script: &str, words: &[&str]) -> Result<String, String> {
        let script = self.root.join("benches/peers").join(script);
        let mut command = program(
            &self.folder,
            &[&self.python.to_string_lossy(), "-W", "ignore", &script.to_string_lossy()],
        );
        captured(command.args(words))
    }

    pub fn load(&self, words: &[&str]) -> std::process::Command {
        let mut command = program(&self.root, &[&self.load.to_string_lossy()]);
        command.args(words);
        command
    }
}

/// The path of a bench target in cargo's JSON lines.
fn executable(output: &str, target: &str) -> Option<PathBuf> {
    let of_target = |line: &&str| line.contains("\"kind\":[\"bench\"]") && line.contains(&format!("\"name\":\"{target}\""));
    let (_, path) = output.lines().find(of_target)?.split_once("\"executable\":\"")?;
    Some(Path::new(path.split_once('"')?.0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_reports_the_location_of_a_bench() {
        let output = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"load"},"executable":"/t/no"}
{"reason":"compiler-artifact","target":{"kind":["bench"],"crate_types":["bin"],"name":"load"},"executable":"/t/release/deps/load-1","fresh":true}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(output, "load"), Some(PathBuf::from("/t/release/deps/load-1")));
        assert_eq!(executable(output, "other"), None);
    }
}
