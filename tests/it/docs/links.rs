//! Links of the Markdown pages: relative ones and their anchors, and the source files that pages name.
use super::{pages, read, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// A page without its code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut is_fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if !is_fenced && !line.starts_with("    ") {
            lines.push(line);
        }
    }
    lines
}

/// The text without code spans, and the code spans.
fn split_code(prose: &str) -> (String, Vec<String>) {
    let (mut text, mut code) = (String::new(), Vec::new());
    for (number, part) in prose.split('`').enumerate() {
        match number % 2 {
            0 => text.push_str(part),
            _ => code.push(part.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }
    (text, code)
}

/// The targets of `[text](target)`.
fn targets(text: &str) -> Vec<String> {
    let after = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    after.filter_map(|rest| Some(rest.split_once(')')?.0.trim().to_string())).collect()
}

/// The ids that GitHub and mdBook give to the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    let ids = headings.map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    });
    ids.map(|id| {
        let count = seen.entry(id.clone()).or_default();
        *count += 1;
        if *count == 1 { id } else { format!("{id}-{}", *count - 1) }
    })
    .collect()
}

/// `a/../b` is `b`.
fn resolved(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts
}

/// What is wrong with a link on `page`.
fn broken(page: &Path, target: &str) -> Option<String> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => page.to_path_buf(),
        file => resolved(&page.parent().unwrap_or(Path::new("")).join(file)),
    };
    if !root().join(&path).exists() {
        return Some("no such file".into());
    }
    // The book has the pages below docs/ only.
    if page.starts_with("docs") && !path.starts_with("docs") {
        return Some("a page of the book may link to pages of the book only".into());
    }
    (!anchor.is_empty() && !anchors(&read(&path)).contains(anchor)).then(|| format!("no heading #{anchor}"))
}

#[test]
fn links_have_existing_targets() {
    let (mut links, mut wrong) = (0, Vec::new());
    for page in pages() {
        let (text, _) = split_code(&prose(&read(&page)).join("\n"));
        for target in targets(&text).iter().filter(|target| !target.contains("://")) {
            links += 1;
            wrong.extend(broken(&page, target).map(|why| format!("{}: {target}: {why}", page.display())));
        }
    }
    assert!(wrong.is_empty(), "broken links:\n{}", wrong.join("\n"));
    assert!(links > 50, "only {links} links were found");
}

#[test]
fn broken_links_are_found() {
    let page = Path::new("docs/reference/launchers.md");
    assert_eq!(broken(page, "configuration.md"), None);
    assert_eq!(broken(page, "#ssh"), None);
    assert_eq!(broken(page, "../explanation/promises.md#values"), None);
    assert_eq!(broken(page, "promises.md").as_deref(), Some("no such file"));
    assert_eq!(broken(page, "#no-such").as_deref(), Some("no heading #no-such"));
    assert!(broken(page, "../../README.md").is_some());
    assert_eq!(targets("[a](b.md) and ![c](d.svg)"), ["b.md", "d.svg"]);
    assert_eq!(
        anchors("# A `b`, c\n## A b c\n    # no\n"),
        ["a-b-c".to_string(), "a-b-c-1".into()].into()
    );
}

/// Pages name the source file behind a statement as `src/…` or `tests/…`.
#[test]
fn source_files_named_on_pages_exist() {
    let (mut named, mut wrong) = (0, Vec::new());
    for page in pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let (_, code) = split_code(&prose(&read(page)).join("\n"));
        let is_path = |code: &&String| {
            ["src/", "tests/", "templates/", "examples/", "docs/", "xtask/", "benches/", "ci/"]
                .iter()
                .any(|root| code.starts_with(root))
        };
        for code in code
            .iter()
            .filter(is_path)
            .filter(|code| !code.contains(['<', '*', '{', ' ', ':', '…', '[']))
        {
            named += 1;
            if !root().join(code).exists() {
                wrong.push(format!("{}: `{code}`", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these files do not exist:\n{}", wrong.join("\n"));
    assert!(named > 30, "only {named} names were found");
}

#[test]
fn the_book_has_every_page() {
    let (summary, _) = split_code(&read("docs/SUMMARY.md"));
    let listed: BTreeSet<PathBuf> = targets(&summary).iter().map(|target| Path::new("docs").join(target)).collect();
    let pages = pages()
        .into_iter()
        .filter(|page| page.starts_with("docs") && !page.ends_with("SUMMARY.md"));
    assert_eq!(pages.collect::<BTreeSet<_>>(), listed);
}
