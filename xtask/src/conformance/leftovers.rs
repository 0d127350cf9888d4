//! Processes left running by tests, found by the run id in their environment.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Ends them, and those that replace them; returns their number.
pub fn end(report: &Path) -> usize {
    let mark = format!("PCLUSTER_REPORT={}", report.display());
    let mut ended = BTreeSet::new();
    loop {
        let there = of_run(&mark);
        if there.is_empty() {
            return ended.len();
        }
        for pid in there {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
            ended.insert(pid);
        }
    }
}

fn of_run(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        // Of a process of another user, or of one that has ended, nothing is read.
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.push(pid.to_string());
        }
    }
    found
}
