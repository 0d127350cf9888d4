//! The processes of one cluster, known by the IPython directory in their environment.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ControllerSupervisor,
    Controller,
    EngineSupervisor,
    Engine,
    /// The Python that an engine has started, if it forks workers.
    Interpreter,
    /// A Python that runs tasks.
    Worker,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// Those that look after each other are in one, which the first supervisor of them has led.
    pub session: u32,
    pub kind: Kind,
}

/// All that run in this home, but commands of the command line.
pub fn of(home: &Path) -> Vec<Process> {
    let variable = format!("IPYTHONDIR={}", home.join("ipython").display());
    let mut found: Vec<(u32, (u32, u32), Vec<String>)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let strings = |name: &str| -> Vec<String> {
            let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            text.split('\0').map(String::from).collect()
        };
        if strings("environ").contains(&variable)
            && let Some(place) = parent_and_session(entry.path().join("stat").as_path())
        {
            found.push((pid, place, strings("cmdline")));
        }
    }
    let word = |words: &[String], word: &str| words.iter().any(|w| w == word);
    let kind = |words: &[String]| {
        let supervises = word(words, "--supervise");
        match words.get(1).map(String::as_str) {
            Some("controller") if supervises => Some(Kind::ControllerSupervisor),
            Some("controller") => Some(Kind::Controller),
            Some("engine") if supervises => Some(Kind::EngineSupervisor),
            Some("engine") => Some(Kind::Engine),
            _ => None,
        }
    };
    let engines: Vec<u32> = found.iter().filter(|f| kind(&f.2) == Some(Kind::Engine)).map(|f| f.0).collect();
    let is_python = |words: &[String]| words.iter().any(|word| word.contains("pcluster worker"));
    let pythons: Vec<(u32, u32)> = found.iter().filter(|f| is_python(&f.2)).map(|f| (f.0, f.1.0)).collect();
    let known = |(pid, (parent, session), words): &(u32, (u32, u32), Vec<String>)| {
        let has_workers = pythons.iter().any(|(_, parent)| parent == pid);
        let of_engine = engines.contains(parent) || pythons.iter().any(|(python, _)| python == parent);
        let worker = (is_python(words) && of_engine).then_some(match has_workers {
            true => Kind::Interpreter,
            false => Kind::Worker,
        });
        Some(Process {
            pid: *pid,
            parent: *parent,
            session: *session,
            kind: kind(words).or(worker)?,
        })
    };
    let mut processes: Vec<Process> = found.iter().filter_map(known).collect();
    processes.sort_by_key(|process| process.pid);
    processes
}

/// How many engines there are or will be: each with its supervisor, or one of the two.
pub fn slots(processes: &[Process]) -> usize {
    let of_engines = processes.iter().filter(|p| matches!(p.kind, Kind::EngineSupervisor | Kind::Engine));
    of_engines.map(|p| p.session).collect::<BTreeSet<u32>>().len()
}

/// None for one that has ended.
fn parent_and_session(stat: &Path) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(stat).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    match *fields.first()? {
        "Z" | "X" => None,
        _ => Some((fields.get(1)?.parse().ok()?, fields.get(3)?.parse().ok()?)),
    }
}

/// One line for each, for a report.
pub fn listed(processes: &[Process]) -> String {
    let line = |p: &Process| format!("  {:?} {} (parent {}, session {})", p.kind, p.pid, p.parent, p.session);
    processes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `KILL`, `STOP`, `CONT`. One that has ended meanwhile is no error.
pub fn signal(name: &str, pid: u32) {
    let mut command = Command::new("kill");
    command.args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null());
    let _ = command.status();
}
