//! The pages agree with the sources, and their links lead to pages and headings that exist.
mod links;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every Markdown page of the project, by its path in the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap().flatten() {
            let path = folder.join(entry.file_name());
            let is_top = folder.as_os_str().is_empty();
            if entry.path().is_dir() {
                if !is_top || ["docs", "examples", "python"].iter().any(|name| path.ends_with(name)) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 20, "only {} pages were found", pages.len());
    pages
}

#[test]
fn every_message_type_is_in_the_protocol_page() {
    let page = read("docs/reference/protocol.md");
    let mut types = 0;
    for file in ["client.rs", "engine.rs", "hub.rs"] {
        for line in read(Path::new("src/wire/content").join(file)).lines() {
            let Some(name) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": &str = \"")) else {
                continue;
            };
            let word = name.1.trim_end_matches("\";");
            assert!(
                page.contains(&format!("`{word}`")),
                "docs/reference/protocol.md does not name `{word}` of {file}"
            );
            types += 1;
        }
    }
    assert!(types > 30, "only {types} message types were found");
}

#[test]
fn the_page_has_the_current_protocol_version() {
    let protocol = format!("`PROTOCOL_VERSION` (now {})", pcluster::testing::model::PROTOCOL_VERSION);
    assert!(
        read("docs/reference/protocol.md").contains(&protocol),
        "docs/reference/protocol.md does not say {protocol}"
    );
}

#[test]
fn pages_have_no_unfinished_markers() {
    for page in pages() {
        let text = read(&page);
        for word in ["TODO", "FIXME", "XXX", "To come."] {
            assert!(!text.contains(word), "{} contains {word}", page.display());
        }
    }
}
