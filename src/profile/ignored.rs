//! Configuration files of ipyparallel's programs that pcluster ignores.
use super::ProfileDir;
use std::path::PathBuf;

/// The files of ipyparallel's `ipcontroller` and `ipcluster`.
const FILES: [&str; 4] = [
    "ipcontroller_config.py",
    "ipcontroller_config.json",
    "ipcluster_config.py",
    "ipcluster_config.json",
];

impl ProfileDir {
    /// The files that set something: `ipython profile create` writes files with comments only.
    pub fn ignored_settings(&self) -> Vec<PathBuf> {
        let files = FILES.iter().map(|name| self.path().join(name));
        files
            .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| sets_something(&text)))
            .collect()
    }
}

fn sets_something(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("c = get_config()") && line != "{}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_only_comments_set_nothing() {
        assert!(!sets_something("# Configuration\n\nc = get_config()  #noqa\n  # c.X.y = 1\n"));
        assert!(!sets_something("{}\n"));
        assert!(sets_something("# Configuration\nc.IPController.location = 'here'\n"));
        assert!(sets_something("{\"IPController\": {}}"));
    }
}
