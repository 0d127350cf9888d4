//! Long functions and long files are hard to read. Tests do not count, and neither does a file that is listed here with its reason.
use super::source::{Source, is_word};
use super::{sources, walk};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const MAX_FUNCTION_LINES: usize = 100;
const MAX_FILE_LINES: usize = 600;

/// `FILE FUNCTION` or `FILE`, and why it is longer. An entry that is not needed any more fails the test.
const LONGER: &[(&str, &str)] = &[("cluster/engines.rs add_engines", "is being split")];

#[test]
fn functions_and_files_are_short() {
    let mut found = BTreeMap::new();
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/src");
    let own = walk(&xtask).into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        Source::new(&Path::new("xtask").join(path.strip_prefix(&xtask).unwrap()), &text)
    });
    for source in sources().into_iter().chain(own) {
        found.extend(too_long(&source.path.display().to_string(), &source.without_tests()));
    }
    let is_listed = |name: &String| LONGER.iter().any(|(listed, _)| listed == name);
    let mut wrong: Vec<String> = found
        .iter()
        .filter(|(name, _)| !is_listed(name))
        .map(|(name, lines)| format!("{name}: {lines} lines; split it"))
        .collect();
    let stale = LONGER.iter().filter(|(name, _)| !found.contains_key(*name));
    wrong.extend(stale.map(|(name, _)| format!("{name} is short enough now: remove it from LONGER")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `FILE FUNCTION` or `FILE`, with its lines, for what exceeds a limit.
fn too_long(file: &str, code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let rest = &code[at + 3..];
        let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        if name.is_empty() || code[..at].ends_with(is_word) {
            continue;
        }
        let lines = lines_of_function(rest);
        if lines > MAX_FUNCTION_LINES {
            found.push((format!("{file} {name}"), lines));
        }
    }
    let lines = code.trim_end().lines().count();
    if lines > MAX_FILE_LINES {
        found.push((file.to_string(), lines));
    }
    found
}

/// From the function's name to its closing brace; 1 for a declaration without a body.
fn lines_of_function(code: &str) -> usize {
    let (mut brackets, mut braces, mut lines) = (0i32, 0i32, 1);
    for c in code.chars() {
        match c {
            '\n' => lines += 1,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            '{' => braces += 1,
            '}' if braces <= 1 => return lines,
            '}' => braces -= 1,
            ';' if brackets == 0 && braces == 0 => return 1,
            _ => {}
        }
    }
    lines
}

#[test]
fn lines_of_functions_and_files_are_counted() {
    let code = |body: usize| {
        let text = "    call(\"a\n b }\"); // }\n".repeat(body / 2);
        let text = format!(
            "trait T {{\n    fn declared(a: [u8; 2]);\n}}\nfn long(a: [u8; 2]) -> u8\n{{\n{text}}}\n#[cfg(test)]\nfn test() {{\n{text}{text}}}\n"
        );
        Source::new(Path::new("db/x.rs"), &text).without_tests()
    };
    assert_eq!(too_long("x", &code(96)), []);
    assert_eq!(too_long("x", &code(98)), [("x long".to_string(), 101)]);
    assert_eq!(too_long("x", &code(596)), [("x long".to_string(), 599), ("x".to_string(), 602)]);
}
