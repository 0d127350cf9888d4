//! `cargo xtask fuzz`: fuzzes all parsers of foreign input (the package in `fuzz/`, on the stable toolchain).
use crate::Places;
use crate::run::{echo, program, spelled, status};

/// How long the fuzzing in `cargo xtask test` takes, in seconds.
pub const IN_TESTS: &str = "24";

/// Whether nothing was found. `arguments` are the fuzzer's own: `--seconds N`, `--seed N`, `--target NAME`, `--replay FILE`.
pub fn run(places: &Places, arguments: &[&str]) -> Result<bool, String> {
    let words = [&["cargo", "run", "--quiet", "--package", "pcluster-fuzz", "--"], arguments].concat();
    let mut command = program(&places.root, &words);
    let line = spelled(&command);
    echo(&line);
    let ended = status(&mut command).map_err(|why| format!("{line}: {why}"))?;
    Ok(ended.success())
}
