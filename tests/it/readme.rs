//! The README's commands are real: all of them, in their order, as a newcomer would type them.
use super::support::{Home, PCLUSTER};
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn every_command_of_the_readme_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let commands: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.contains("pcluster ") && !line.contains("cargo") || line.contains("make_digits.py --out"))
        .collect();
    assert!(commands.len() > 20, "{commands:#?}");

    let home = Home::new();
    symlink(root.join("examples"), home.path().join("examples")).unwrap();
    std::fs::create_dir(home.path().join("bin")).unwrap();
    symlink(PCLUSTER, home.path().join("bin/pcluster")).unwrap();
    let path = format!("{}/bin:{}", home.path().display(), std::env::var("PATH").unwrap());
    for command in commands {
        // A tenth of the digits is enough.
        let command = command.replace("--out", "--digits 100000 --out");
        let output = home.program("sh").args(["-c", &command]).env("PATH", &path).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "$ {command}\n{}{}",
            said(&output.stdout),
            said(&output.stderr)
        );
        // A cluster that the next part of the README starts again.
        if command.starts_with("pcluster start") {
            assert!(home.run(&["status"]).ok().contains("engines     4"));
        }
    }
}
