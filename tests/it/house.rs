//! Holds the house's rules against the sources: who may name whom, and the invariants of ARCHITECTURE.md that can be
//! read off the text. Comments and strings are taken out first, so only code counts.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room, and what it may name. A room may always name itself. A core is a room of its own.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "cluster",
            "dashboard",
            "client",
            "controller",
            "engine",
            "launchers",
            "connection",
            "db",
            "profile",
            "model",
        ],
    ),
    ("cluster", &["launchers", "client", "connection", "profile", "model"]),
    ("dashboard", &["client", "model"]),
    ("client", &["transport", "connection", "wire", "profile", "model"]),
    (
        "controller",
        &["controller::core", "transport", "connection", "db", "wire", "profile", "model"],
    ),
    ("engine", &["engine::core", "transport", "connection", "wire", "profile", "model"]),
    ("launchers", &["connection::ssh", "connection::process", "profile", "model"]),
    ("connection", &["wire", "profile", "model"]),
    ("transport", &["wire", "model"]),
    ("db", &["model"]),
    ("controller::core", &["wire", "model", "profile::config"]),
    ("engine::core", &["wire", "model", "profile::config"]),
    ("wire", &["model"]),
    ("profile", &["model"]),
    ("model", &[]),
];

/// What a pure room must not know: clocks, files, sockets, processes, threads, randomness.
const IMPURE: &[&str] = &[
    "SystemTime",
    "Instant::now",
    "Timestamp::now",
    "Zoned::now",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::thread",
    "tokio",
    "nix",
    "notify",
    "rand::",
    "uuid::",
    "new_v4",
    "rusqlite",
    "omq_tokio",
];
const PURE: &[&str] = &["model", "wire", "controller::core", "engine::core"];

struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    room: String,
    /// How many modules deep the file's own module is (`src/db/mod.rs` is 1).
    depth: usize,
    /// Without comments and strings.
    code: String,
}

impl Source {
    fn new(path: &Path, text: &str) -> Source {
        let mut modules: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        let file = modules.pop().unwrap_or_default().trim_end_matches(".rs");
        if file != "mod" {
            modules.push(file);
        }
        let room = match modules.as_slice() {
            [room @ ("controller" | "engine"), "core", ..] => format!("{room}::core"),
            [room, ..] => (*room).to_string(),
            [] => String::new(),
        };
        Source {
            path: path.to_path_buf(),
            room,
            depth: modules.len(),
            code: code_only(text),
        }
    }

    /// The code without items that are only for tests; nothing for a file that holds only tests.
    fn without_tests(&self) -> String {
        let mut code = String::new();
        if self.path.iter().any(|part| part == "tests" || part == "tests.rs") {
            return code;
        }
        let mut parts = self.code.split("#[cfg(test)]");
        code.push_str(parts.next().unwrap_or_default());
        parts.for_each(|part| code.push_str(after_item(part)));
        code
    }

    /// Paths of at most two words behind `crate::`, such as `profile::config`.
    fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (at, _) in self.code.match_indices("crate::") {
            if self.code[..at].ends_with(is_word) {
                continue;
            }
            collect_paths(&self.code[at + "crate::".len()..], &mut names);
        }
        names
    }

    fn forbidden_names(&self) -> Vec<String> {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == self.room) else {
            return vec![format!(
                "{}: no such room in the table of arrows: add it to the design first",
                self.path.display()
            )];
        };
        let mut wrong = Vec::new();
        for name in self.names() {
            let room = name.split("::").next().unwrap_or_default();
            if !ARROWS.iter().any(|(known, _)| *known == room) {
                continue;
            }
            let own = name == self.room || name.starts_with(&format!("{}::", self.room));
            let may = allowed
                .iter()
                .any(|may| *may == room || name == *may || name.starts_with(&format!("{may}::")));
            if !own && !may {
                wrong.push(format!("{}: {} may not name {name}", self.path.display(), self.room));
            }
        }
        wrong.extend(self.paths_out_of_the_room());
        wrong
    }

    /// `super::super::…` that climbs to the crate's root would go round the table.
    fn paths_out_of_the_room(&self) -> Vec<String> {
        let tests = self.code.find("mod tests {").unwrap_or(self.code.len());
        let mut wrong = Vec::new();
        for (at, _) in self.code.match_indices("super::") {
            let before = &self.code[..at];
            if before.ends_with("super::") || before.ends_with(is_word) {
                continue;
            }
            let mut rest = &self.code[at..];
            let mut climbed = 0;
            while let Some(further) = rest.strip_prefix("super::") {
                rest = further;
                climbed += 1;
            }
            let depth = self.depth + usize::from(at > tests);
            if climbed >= depth {
                wrong.push(format!(
                    "{}: {}… leaves the room: write crate::",
                    self.path.display(),
                    "super::".repeat(climbed)
                ));
            }
        }
        wrong
    }

    /// Which of `words` the code names, as whole words.
    fn uses<'a>(code: &str, words: &[&'a str]) -> Vec<&'a str> {
        let stands_in = |word: &&str| {
            code.match_indices(*word).any(|(at, _)| {
                let longer_word = word.ends_with(is_word) && code[at + word.len()..].starts_with(is_word);
                !longer_word && !code[..at].ends_with(is_word)
            })
        };
        words.iter().copied().filter(stands_in).collect()
    }
}

/// What follows the item at the start of `code`: behind its `;`, or behind its closing brace.
fn after_item(code: &str) -> &str {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 1 => depth -= 1,
            '}' => return &code[at + 1..],
            ';' if depth == 0 => return &code[at + 1..],
            _ => {}
        }
    }
    ""
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads `a::b`, `a`, `{a, b::c, d::{e, f}}` at the start of `text`, two words deep.
fn collect_paths(text: &str, names: &mut BTreeSet<String>) {
    for (first, rest) in alternatives(text) {
        match rest.strip_prefix("::") {
            Some(rest) => {
                let seconds = alternatives(rest);
                if seconds.is_empty() {
                    names.insert(first.to_string());
                }
                names.extend(seconds.into_iter().map(|(second, _)| format!("{first}::{second}")));
            }
            None => {
                names.insert(first.to_string());
            }
        }
    }
}

/// The first words of a path or of each path in a braced group, each with what follows it.
fn alternatives(text: &str) -> Vec<(&str, &str)> {
    let split = |part: &'_ str| {
        let part_trimmed = part.trim_start();
        part_trimmed.find(|c| !is_word(c)).unwrap_or(part_trimmed.len())
    };
    let Some(group) = text.trim_start().strip_prefix('{') else {
        let text = text.trim_start();
        let end = split(text);
        return if end == 0 { Vec::new() } else { vec![(&text[..end], &text[end..])] };
    };
    let (mut found, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let part = group[start..at].trim();
                let end = split(part);
                if end > 0 {
                    found.push((&part[..end], &part[end..]));
                }
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// `text` with comments, strings and character literals blanked out.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while i < chars.len() {
        let raw_hashes = || {
            let start = i + 1;
            let hashes = chars[start.min(chars.len())..].iter().take_while(|c| **c == '#').count();
            (at(start + hashes) == '"').then_some(hashes)
        };
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            'r' if !out.ends_with(|c| is_word(c) && c != 'b') && raw_hashes().is_some() => {
                let hashes = raw_hashes().unwrap_or(0);
                let end: String = format!("\"{}", "#".repeat(hashes));
                i += hashes + 2;
                while i < chars.len() && !chars[i..].iter().take(hashes + 1).collect::<String>().eq(&end) {
                    i += 1;
                }
                i += hashes + 1;
                out.push_str("\"\"");
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    paths
        .iter()
        .filter(|path| !path.ends_with("src/lib.rs") && !path.ends_with("src/main.rs"))
        .map(|path| Source::new(path.strip_prefix(&root).unwrap(), &fs::read_to_string(path).unwrap()))
        .collect()
}

fn assert_none(wrong: Vec<String>) {
    assert!(
        wrong.is_empty(),
        "the house's rules (ARCHITECTURE.md) are broken:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn arrows_point_down() {
    let sources = sources();
    assert!(sources.len() > 20, "the sources were not found");
    assert_none(sources.iter().flat_map(Source::forbidden_names).collect());
}

#[test]
fn each_foreign_crate_has_one_door() {
    let mut wrong = Vec::new();
    for source in sources() {
        let path = source.path.display().to_string();
        for (word, may) in [
            ("omq_tokio", path == "transport/zmq.rs"),
            ("rusqlite", source.room == "db"),
            ("clap", source.room == "cli"),
        ] {
            if !may && !Source::uses(&source.code, &[word]).is_empty() {
                wrong.push(format!("{path}: names {word}"));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn only_the_command_line_prints_and_exits() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room != "cli") {
        let words = [
            "println",
            "eprintln",
            "print",
            "eprint",
            "dbg",
            "process::exit",
            "io::stdout",
            "io::stderr",
            "process::ExitCode",
        ];
        for word in Source::uses(&source.without_tests(), &words) {
            wrong.push(format!("{}: {word}", source.path.display()));
        }
    }
    assert_none(wrong);
}

#[test]
fn words_wire_and_cores_know_no_world() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| PURE.contains(&source.room.as_str())) {
        for word in Source::uses(&source.without_tests(), IMPURE) {
            wrong.push(format!("{}: {word}", source.path.display()));
        }
    }
    assert_none(wrong);
}

#[test]
fn batch_systems_do_not_name_each_other() {
    let systems = ["sge", "pbs", "slurm", "lsf", "htcondor"];
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room == "launchers") {
        let Some(own) = source
            .path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| systems.contains(stem))
        else {
            continue;
        };
        for other in systems.iter().filter(|other| **other != own) {
            if source.code.contains(&format!("{other}::")) {
                wrong.push(format!("{}: names {other}", source.path.display()));
            }
        }
    }
    assert_none(wrong);
}

/// The checker itself: what it must see and what it must not.
mod checker {
    use super::*;

    fn wrong(path: &str, text: &str) -> Vec<String> {
        Source::new(Path::new(path), text).forbidden_names()
    }

    #[test]
    fn sees_every_spelling() {
        for text in [
            "use crate::db::Writer;",
            "use crate::{model::TaskId, db};",
            "use crate::{\n    model::{a, b},\n    db::{Reader, Writer},\n};",
            "fn f() -> crate::db::Writer {}",
            "use super::super::db;",
            "use super::super::super::db;",
        ] {
            assert!(!wrong("wire/session.rs", text).is_empty(), "{text}");
        }
        assert_eq!(wrong("controller/core/hub.rs", "use crate::profile::dir::ProfileDir;").len(), 1);
        assert_eq!(wrong("controller/core/hub.rs", "use crate::{profile::{config, dir}};").len(), 1);
        assert_eq!(wrong("controller/driver.rs", "use crate::engine::run;").len(), 1);
        assert_eq!(wrong("kitchen/mod.rs", "").len(), 1);
    }

    #[test]
    fn passes_what_is_allowed() {
        for (path, text) in [
            (
                "wire/session.rs",
                "// crate::db\nuse crate::model::TaskId; /* crate::db */ const S: &str = \"crate::db\";",
            ),
            (
                "wire/session.rs",
                "const S: &str = r#\"crate::db \"quoted\" \"#; use crate::wire::Frames; const C: char = '\"';",
            ),
            (
                "wire/session.rs",
                "fn f<'a>(a: &'a str) {} use super::message::Message; mod tests { use super::super::DELIMITER; }",
            ),
            ("wire/mod.rs", "mod tests { use super::*; }"),
            (
                "controller/core/hub.rs",
                "use crate::profile::config::ControllerConfig; use crate::controller::core::event::Event;",
            ),
            ("controller/driver.rs", "use crate::controller::core::Core; use crate::db::Writer;"),
            ("launchers/local.rs", "use crate::connection::ssh::Host; use super::Launcher;"),
        ] {
            assert_eq!(wrong(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn purity_looks_at_whole_words_outside_tests() {
        let source = Source::new(Path::new("wire/x.rs"), "fn randomly() {}\n#[cfg(test)]\nmod tests { use std::fs; }");
        assert!(Source::uses(&source.without_tests(), IMPURE).is_empty());
        let source = Source::new(
            Path::new("wire/x.rs"),
            "#[cfg(test)]\nmod tests;\nuse std::fs;\nfn f() { Instant::now() }",
        );
        assert_eq!(Source::uses(&source.without_tests(), IMPURE), ["Instant::now", "std::fs"]);
    }
}
