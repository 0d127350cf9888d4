//! Checks the sources against ARCHITECTURE.md: allowed dependencies, and the invariants that can be
//! checked in the text. Comments and strings are removed first, so only code counts.
mod circles;
mod size;
mod source;
mod wording;

use source::Source;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module and its allowed dependencies. A core is a separate module.
const DEPENDENCIES: &[(&str, &str)] = &[
    (
        "cli",
        "cluster dashboard client controller engine launchers connection ssh db profile model sys",
    ),
    ("cluster", "launchers client connection ssh profile model sys"),
    ("dashboard", "client model"),
    ("client", "transport connection wire profile model sys"),
    (
        "controller",
        "controller::core transport connection db wire profile model memory sys",
    ),
    ("engine", "engine::core transport connection ssh wire profile model sys"),
    ("launchers", "connection ssh profile model sys"),
    ("connection", "wire profile model sys"),
    ("ssh", "profile model sys"),
    ("transport", "wire model"),
    ("db", "model"),
    ("controller::core", "wire model profile::config"),
    ("engine::core", "wire model profile::config"),
    ("wire", "model"),
    ("profile", "model"),
    ("model", ""),
    ("memory", ""),
    ("sys", ""),
];

/// What a pure module must not use: clocks, files, sockets, processes, threads, randomness.
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
    "notify::",
    "rand::",
    "uuid::",
    "new_v4",
    "rusqlite",
    "omq_tokio",
];
const PURE: &[&str] = &["model", "wire", "controller::core", "engine::core"];

/// The Rust files of a directory.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    walk(&root)
        .iter()
        .filter(|path| !["lib.rs", "main.rs", "testing.rs"].iter().any(|name| **path == root.join(name)))
        .map(|path| Source::new(path.strip_prefix(&root).unwrap(), &fs::read_to_string(path).unwrap()))
        .collect()
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "the rules (ARCHITECTURE.md) are broken:\n{}", wrong.join("\n"));
}

#[test]
fn dependencies_point_down() {
    let sources = sources();
    assert!(sources.len() > 20, "the sources were not found");
    assert_none(sources.iter().flat_map(Source::forbidden_names).collect());
}

#[test]
fn each_external_crate_is_used_in_one_module() {
    let mut wrong = Vec::new();
    for source in sources() {
        let path = source.path.display().to_string();
        for (word, may) in [
            ("omq_tokio", path == "transport/zmq.rs"),
            ("rusqlite", source.module == "db"),
            ("clap", source.module == "cli"),
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
    for source in sources().iter().filter(|source| source.module != "cli") {
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
fn model_wire_and_cores_are_pure() {
    let mut wrong = Vec::new();
    let is_elastic = |source: &Source| source.path.starts_with("cluster/elastic");
    let is_pure = |source: &&Source| PURE.contains(&source.module.as_str()) || is_elastic(source);
    assert!(sources().iter().any(is_elastic), "the decisions of elasticity were not found");
    for source in sources().iter().filter(is_pure) {
        for word in Source::uses(&source.without_tests(), IMPURE) {
            wrong.push(format!("{}: {word}", source.path.display()));
        }
    }
    assert_none(wrong);
}

/// The batch systems and their shared code. Only the conversion of a launch into a request may read the environment.
#[test]
fn batch_systems_are_pure() {
    let systems = ["sge", "pbs", "slurm", "lsf", "htcondor", "batch"];
    let mut wrong = Vec::new();
    let mut rows = 0;
    for source in sources() {
        let path = source.path.display().to_string();
        let part = path.strip_prefix("launchers/").and_then(|rest| rest.split(['/', '.']).next());
        let is_row = part.is_some_and(|part| systems.contains(&part));
        if !is_row || path.ends_with("/tests.rs") || path == "launchers/batch/launch.rs" {
            continue;
        }
        rows += 1;
        let words = Source::uses(&source.without_tests(), IMPURE);
        wrong.extend(words.iter().map(|word| format!("{path}: {word}")));
    }
    assert!(rows > 12, "only {rows} files were found");
    assert_none(wrong);
}

#[test]
fn batch_systems_do_not_name_each_other() {
    let systems = ["sge", "pbs", "slurm", "lsf", "htcondor"];
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module == "launchers") {
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

/// The files of a circle can only be understood together.
#[test]
fn no_circle_of_imports_has_more_than_three_files() {
    let imports = circles::imports(&sources());
    let circles = circles::circles(&imports, 3);
    assert_none(circles.iter().map(|circle| circles::describe(circle, &imports)).collect());
}

/// Parsers of what other programs and libraries print.
const FOREIGN_OUTPUT: &[&str] = &[
    "launchers/batch/squeue.rs",
    "launchers/htcondor.rs",
    "launchers/pbs.rs",
    "launchers/sge.rs",
    // Messages of the YAML library, and of the ZeroMQ library.
    "profile/error.rs",
    "transport/handshakes.rs",
];

#[test]
fn no_decision_depends_on_the_wording_of_a_message() {
    let mut wrong = Vec::new();
    for source in sources() {
        let path = source.path.display().to_string();
        if FOREIGN_OUTPUT.contains(&path.as_str()) {
            continue;
        }
        let found = wording::comparisons(&source.without_tests());
        wrong.extend(found.iter().map(|value| format!("{path}: {value} is compared with a literal")));
    }
    assert_none(wrong);
}

/// Tests of the checker: what it must find and what it must accept.
mod checker {
    use super::*;

    fn wrong(path: &str, text: &str) -> Vec<String> {
        Source::new(Path::new(path), text).forbidden_names()
    }

    #[test]
    fn finds_every_form_of_use() {
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
    fn accepts_allowed_code() {
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
            ("launchers/local.rs", "use crate::ssh::session::Ssh; use super::Launcher;"),
        ] {
            assert_eq!(wrong(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn purity_checks_whole_words_outside_tests() {
        let source = Source::new(Path::new("wire/x.rs"), "fn randomly() {}\n#[cfg(test)]\nmod tests { use std::fs; }");
        assert!(Source::uses(&source.without_tests(), IMPURE).is_empty());
        let source = Source::new(
            Path::new("wire/x.rs"),
            "#[cfg(test)]\nmod tests;\nuse std::fs;\nfn f() { Instant::now() }",
        );
        assert_eq!(Source::uses(&source.without_tests(), IMPURE), ["Instant::now", "std::fs"]);
    }

    fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(Path::new(path), text)).collect();
        let joined = |circle: &std::collections::BTreeSet<String>| Vec::from_iter(circle.iter().map(String::as_str)).join(" ");
        circles::circles(&circles::imports(&sources), 1).iter().map(joined).collect()
    }

    #[test]
    fn finds_circles_of_every_form_of_import() {
        for import in [
            "use crate::a::x::X;",
            "use super::x::{self, X};\nfn f(_: X) {}",
            "use super::x as other;\nfn f(_: other::X) {}",
            "use super::{y, x::{X as Z}};",
            "fn f(_: super::x::X) {}",
            "fn f(_: Vec<crate::a::x::X>) {}",
            "use crate::a;\nfn f(_: a::x::X) {}",
            "use super::x::*;",
            // By a re-export, and by what the parent imports for itself.
            "use super::X;",
            "use crate::a::X;",
            "use super::Renamed;",
            "use super::super::a::X;",
        ] {
            let parent = "mod x;\nmod y;\npub(crate) use x::X;\nuse x::X as Renamed;";
            let found = circles_of(&[("a/mod.rs", parent), ("a/x.rs", "use super::y::Y;"), ("a/y.rs", import)]);
            assert_eq!(found, ["a/x.rs a/y.rs"], "{import}");
        }
        // Longer ones, across modules, and through an item of the parent.
        let found = circles_of(&[
            ("a/mod.rs", "mod x;\nfn f() { x::g() }"),
            ("a/x.rs", "use crate::b::B;"),
            ("b.rs", "fn h() { crate::a::f() }"),
        ]);
        assert_eq!(found, ["a/mod.rs a/x.rs b.rs"]);
    }

    #[test]
    fn accepts_imports_without_circles() {
        for (parent, x, y) in [
            // A facade is no circle, and neither is a declaration.
            (
                "mod x;\nmod y;\npub(crate) use {x::X, y::Y};\nfn shared() {}",
                "use super::{Y, shared};",
                "use super::shared;",
            ),
            // An import of a module alone names nothing.
            ("", "use super::y;\nfn f() { y::g() }", "use super::x;"),
            // In comments, strings and tests; of other crates; of the file's own items.
            (
                "",
                "use super::y::Y;",
                "// super::x::X\nconst S: &str = \"crate::a::x::X\";\n#[cfg(test)]\nmod tests { use super::super::x::X; }",
            ),
            (
                "",
                "use super::y::Y;",
                "use x::X;\nuse std::x;\nfn f() -> impl use<'_> Fn() { self::g() }",
            ),
        ] {
            let found = circles_of(&[("a/mod.rs", parent), ("a/x.rs", x), ("a/y.rs", y)]);
            assert_eq!(found, Vec::<String>::new(), "{y}");
        }
        let sources = [("a.rs", "use crate::b::B;"), ("b.rs", "use crate::a::A;")].map(|(path, text)| Source::new(Path::new(path), text));
        assert!(circles::circles(&circles::imports(&sources), 2).is_empty());
    }

    #[test]
    fn finds_every_comparison_of_a_message() {
        for code in [
            "if reason == \"walltime\" {}",
            "if self.reason != \"walltime\" {}",
            "if message.contains(\"not found\") {}",
            "row.filter(|row| row.state.starts_with(\"done\"))",
            "let over = why.to_ascii_lowercase().trim().ends_with(\"over\");",
            "let over = job\n    .reason\n    .as_deref()\n    .unwrap_or_default()\n    .contains(\"over\");",
            "let kind = error.to_string().contains(\"locked\");",
            "matches!(engine.state.as_str(), \"silent\" | \"leaving\")",
            "match engine.state.as_str() { \"busy\" => 1, _ => 2 }",
            "match self.hint.as_deref() { Some(\"x\") => 1, _ => 2 }",
            "let signal = reason.strip_prefix(\"the engine received \");",
        ] {
            let source = Source::new(Path::new("cluster/x.rs"), code);
            assert_eq!(wording::comparisons(&source.without_tests()).len(), 1, "{code}");
        }
    }

    #[test]
    fn accepts_comparisons_of_other_values_and_of_enums() {
        for code in [
            "if engine.state == EngineState::Silent {}",
            "match engine.state { EngineState::Idle => \"idle\", _ => \"\" }",
            "if name == \"default\" || path.ends_with(\"x.sh\") || reason.is_empty() || reason == other {}",
            "let unreasonable = season.contains(\"summer\");",
            "let text = format!(\"{message}\"); if found(message) == \"x\" {}",
            "#[cfg(test)]\nmod tests { fn f() { assert!(message.contains(\"x\")); } }",
        ] {
            let source = Source::new(Path::new("cluster/x.rs"), code);
            assert_eq!(wording::comparisons(&source.without_tests()), Vec::<String>::new(), "{code}");
        }
    }
}
