//! The graph of imports between files, and its circles (strongly connected components).
use super::source::{Source, is_word};
use std::collections::{BTreeMap, BTreeSet};

/// Which files each file imports, by path, and which names from each.
pub type Imports = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

type Path = Vec<String>;

/// A file's names: what it binds with `use`, and the paths that it uses.
#[derive(Default)]
struct File {
    path: String,
    module: Path,
    bound: BTreeMap<String, Path>,
    used: Vec<Path>,
}

/// Declarations of modules and re-exports are no imports; a re-export leads to the file that defines the name.
pub fn imports(sources: &[Source]) -> Imports {
    let files: BTreeMap<Path, File> = sources.iter().map(File::read).map(|file| (file.module.clone(), file)).collect();
    let imported = |file: &File| {
        let mut imported = BTreeMap::<String, BTreeSet<String>>::new();
        let absolute = file.used.iter().filter_map(|path| file.absolute(path, &files));
        for (other, name) in absolute.filter_map(|path| defined_in(&path, &files, 0)) {
            if other != file.path {
                imported.entry(other).or_default().insert(name);
            }
        }
        imported
    };
    files.values().map(|file| (file.path.clone(), imported(file))).collect()
}

/// The file that defines the item at `path`, and the item's name; None for a module and for another crate.
fn defined_in(path: &[String], files: &BTreeMap<Path, File>, depth: usize) -> Option<(String, String)> {
    let (file, rest) = (1..=path.len()).rev().find_map(|n| Some((files.get(&path[..n])?, &path[n..])))?;
    let name = rest.first()?;
    match file.bound.get(name) {
        Some(bound) if depth < 8 => {
            let further: Path = bound.iter().chain(&rest[1..]).cloned().collect();
            let absolute = file.absolute(&further, files)?;
            let is_module = files.contains_key(&absolute);
            if is_module { None } else { defined_in(&absolute, files, depth + 1) }
        }
        _ => Some((file.path.clone(), name.clone())),
    }
}

impl File {
    fn read(source: &Source) -> File {
        let mut file = File {
            path: source.path.display().to_string(),
            module: source.modules.clone(),
            ..File::default()
        };
        let code = source.without_tests();
        let tokens = tokens(&code);
        let mut at = 0;
        while at < tokens.len() {
            let next = tokens.get(at + 1).copied().unwrap_or_default();
            let previous = at.checked_sub(1).map_or("", |before| tokens[before]);
            if tokens[at] == "use" && next != "<" {
                let exported = matches!(previous, "pub" | ")");
                at += 1;
                file.read_use(&tokens, &mut at, &Path::new(), exported);
            } else if next == "::" && tokens[at].starts_with(is_word) && previous != "::" {
                let mut path = vec![tokens[at].to_string()];
                while tokens.get(at + 1) == Some(&"::") && tokens.get(at + 2).is_some_and(|token| token.starts_with(is_word)) {
                    at += 2;
                    path.push(tokens[at].to_string());
                }
                file.used.push(path);
            }
            at += 1;
        }
        file
    }

    /// Reads the tree of a `use` behind `prefix`; stops at the token behind it.
    fn read_use(&mut self, tokens: &[&str], at: &mut usize, prefix: &[String], exported: bool) {
        let mut path = prefix.to_vec();
        let mut name = None;
        while let Some(token) = tokens.get(*at) {
            match *token {
                "," | ";" | "}" => break,
                "{" => {
                    while !matches!(tokens.get(*at), None | Some(&"}")) {
                        *at += 1;
                        self.read_use(tokens, at, &path, exported);
                    }
                    *at += 1;
                    return;
                }
                "as" => {
                    *at += 1;
                    name = tokens.get(*at).map(|name| (*name).to_string());
                }
                "self" if !path.is_empty() => (),
                token if token.starts_with(is_word) || token == "*" => path.push(token.to_string()),
                _ => (),
            }
            *at += 1;
        }
        let Some(last) = path
            .last()
            .cloned()
            .filter(|_| path.len() > prefix.len() || tokens.get(*at - 1) == Some(&"self"))
        else {
            return;
        };
        if !exported {
            self.used.push(path.clone());
        }
        if last != "*" {
            self.bound.insert(name.unwrap_or(last), path);
        }
    }

    /// The path from the crate's root; None for a name of this file or of another crate.
    fn absolute(&self, path: &[String], files: &BTreeMap<Path, File>) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let within = |module: &[String], rest: &[String]| -> Path { module.iter().chain(rest).cloned().collect() };
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(within(&self.module, rest)),
            "super" => {
                let levels = path.iter().take_while(|part| *part == "super").count();
                let parent = self.module.len().checked_sub(levels)?;
                Some(within(&self.module[..parent], &path[levels..]))
            }
            _ => {
                let child = within(&self.module, std::slice::from_ref(first));
                let bound = self.bound.get(first).filter(|bound| bound.first() != Some(first));
                match bound {
                    _ if files.contains_key(&child) => Some(within(&child, rest)),
                    Some(bound) => self.absolute(&within(bound, rest), files),
                    None => None,
                }
            }
        }
    }
}

/// Words, `::`, and every other character.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            _ if rest.starts_with("::") => 2,
            first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    tokens
}

/// The sets of files that import each other, also indirectly, with more than `allowed` files.
pub fn circles(imports: &Imports, allowed: usize) -> Vec<BTreeSet<String>> {
    let reachable: BTreeMap<&String, BTreeSet<&String>> = imports.keys().map(|file| (file, reachable(file, imports))).collect();
    let mut found: BTreeSet<BTreeSet<String>> = BTreeSet::new();
    for (file, others) in &reachable {
        let both = others
            .iter()
            .filter(|other| reachable.get(*other).is_some_and(|back| back.contains(file)));
        let circle: BTreeSet<String> = both.map(|other| (*other).clone()).collect();
        if circle.len() > allowed {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn reachable<'a>(from: &'a String, imports: &'a Imports) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        let imported = imports.get(file).into_iter().flat_map(BTreeMap::keys);
        next.extend(imported.filter(|other| seen.insert(*other)));
    }
    seen
}

/// The files of a circle, each with what it imports from the others.
pub fn describe(circle: &BTreeSet<String>, imports: &Imports) -> String {
    let mut text = format!("a circle of {} files:", circle.len());
    for file in circle {
        let within = imports[file].iter().filter(|(other, _)| circle.contains(*other));
        let listed = within.map(|(other, names)| format!("{other} ({})", Vec::from_iter(names.iter().map(String::as_str)).join(", ")));
        text.push_str(&format!("\n    {file} imports {}", Vec::from_iter(listed).join(", ")));
    }
    text
}
