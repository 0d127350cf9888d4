//! The pages say what the sources say.
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every page of the project, the README first.
fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/adr", "docs/checklists"];
    let mut pages: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    pages.sort();
    pages
}

#[test]
fn every_message_type_is_in_the_protocol_page() {
    let page = read("docs/protocol.md");
    let mut types = 0;
    for file in ["client.rs", "engine.rs", "hub.rs"] {
        for line in read(Path::new("src/wire/content").join(file)).lines() {
            let Some(name) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": &str = \"")) else {
                continue;
            };
            let word = name.1.trim_end_matches("\";");
            assert!(
                page.contains(&format!("`{word}`")),
                "docs/protocol.md does not name `{word}` of {file}"
            );
            types += 1;
        }
    }
    assert!(types > 30, "only {types} message types were found");
}

#[test]
fn the_protocol_version_of_the_page_is_that_of_the_code() {
    let protocol = format!("`PROTOCOL_VERSION` (now {})", pcluster::model::PROTOCOL_VERSION);
    assert!(
        read("docs/protocol.md").contains(&protocol),
        "docs/protocol.md does not say {protocol}"
    );
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (_, after) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = after.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", page.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links were found");
}

#[test]
fn nothing_on_the_pages_is_unfinished() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for word in ["TODO", "FIXME", "XXX", "To come."] {
            assert!(!text.contains(word), "{} says {word}", page.display());
        }
    }
}
