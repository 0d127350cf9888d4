//! A source file for the rules: its module, its code without comments, and the names that it uses.
use super::DEPENDENCIES;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub struct Source {
    /// Relative to `src/`.
    pub path: PathBuf,
    pub module: String,
    /// The path of the file's own module (`src/db/mod.rs` is `db`).
    pub modules: Vec<String>,
    /// Without comments and strings.
    pub code: String,
}

impl Source {
    pub fn new(path: &Path, text: &str) -> Source {
        let mut modules: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        let file = modules.pop().unwrap_or_default().trim_end_matches(".rs");
        if file != "mod" {
            modules.push(file);
        }
        let module = match modules.as_slice() {
            [module @ ("controller" | "engine"), "core", ..] => format!("{module}::core"),
            [module, ..] => (*module).to_string(),
            [] => String::new(),
        };
        Source {
            path: path.to_path_buf(),
            module,
            modules: modules.into_iter().map(str::to_string).collect(),
            code: code_only(text),
        }
    }

    /// The code without items that are only for tests; nothing for a file that holds only tests.
    pub fn without_tests(&self) -> String {
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

    pub fn forbidden_names(&self) -> Vec<String> {
        let Some((_, allowed)) = DEPENDENCIES.iter().find(|(module, _)| *module == self.module) else {
            return vec![format!(
                "{}: no such module in the table of dependencies: add it to the design first",
                self.path.display()
            )];
        };
        let mut wrong = Vec::new();
        for name in self.names() {
            let module = name.split("::").next().unwrap_or_default();
            if !DEPENDENCIES.iter().any(|(known, _)| *known == module) {
                continue;
            }
            let own = name == self.module || name.starts_with(&format!("{}::", self.module));
            let may = allowed
                .split_whitespace()
                .any(|may| may == module || name == may || name.starts_with(&format!("{may}::")));
            if !own && !may {
                wrong.push(format!("{}: {} may not name {name}", self.path.display(), self.module));
            }
        }
        wrong.extend(self.paths_out_of_the_module());
        wrong
    }

    /// `super::super::…` that climbs to the crate's root would go round the table.
    fn paths_out_of_the_module(&self) -> Vec<String> {
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
            let depth = self.modules.len() + usize::from(at > tests);
            if climbed >= depth {
                wrong.push(format!(
                    "{}: {}… leaves the module: write crate::",
                    self.path.display(),
                    "super::".repeat(climbed)
                ));
            }
        }
        wrong
    }

    /// Which of `words` the code names, as whole words.
    pub fn uses<'a>(code: &str, words: &[&'a str]) -> Vec<&'a str> {
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

pub fn is_word(c: char) -> bool {
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

/// `text` with comments, strings and character literals blanked out, on the same lines.
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
        let start = i;
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
                continue;
            }
        }
        out.extend(chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n'));
    }
    out
}
