//! Parses what to run: `file.py:function` or `package.module:function`.
use super::code::{self, CodeArgs};
use crate::cli::CommandError;
use crate::model::definition::{CallSource, Work};
use bytes::Bytes;
use std::path::Path;

/// The maximum size of a source file.
const MAX_INPUTS_BYTES: u64 = 32 << 20;

/// Parses a function's name and, for a file, reads all the code to send.
pub(crate) fn work(spec: &str, code: &CodeArgs) -> Result<Work, CommandError> {
    let (from, function) = split(spec)?;
    let from = if is_file(from) {
        let source = source(from).map_err(|error| {
            let module = from
                .strip_suffix(".py")
                .map(|stem| stem.replace('/', "."))
                .filter(|module| is_dotted_name(module));
            match (Path::new(from).exists(), module) {
                (false, Some(module)) => error.hint(format!("for a module that the engines can import, omit .py: {module}:{function}")),
                _ => error,
            }
        })?;
        let text = String::from_utf8_lossy(&source);
        if !may_define(&text, function) {
            return Err(unknown_function(from, &text, function));
        }
        drop(text);
        CallSource::Bundle(Box::new(code::bundle(from, source, &code.with)?))
    } else if is_dotted_name(from) {
        if !code.with.is_empty() {
            return Err(CommandError::usage(format!("--with needs a Python file, but {from} is a module"))
                .hint(format!("use a file instead: file.py:{function}")));
        }
        CallSource::Module { module: from.into() }
    } else {
        return Err(
            CommandError::usage(format!("{from:?} is neither a Python file (file.py) nor the name of a module"))
                .hint(format!("for a file without .py, include its directory: ./{from}:{function}")),
        );
    };
    Ok(Work::Call {
        from,
        function: function.into(),
    })
}

fn split(spec: &str) -> Result<(&str, &str), CommandError> {
    let Some((from, function)) = spec
        .rsplit_once(':')
        .filter(|(from, function)| !from.is_empty() && !function.contains('/'))
    else {
        let error = CommandError::usage(format!("{spec:?} does not name a function"));
        if is_file(spec) && Path::new(spec).is_file() {
            let defined = std::fs::read_to_string(spec).map(|text| defined_names(&text)).unwrap_or_default();
            let example = defined.first().cloned().unwrap_or_else(|| "function".into());
            return Err(error
                .hint(format!("append the function: {spec}:{example}"))
                .hint_list("it defines", &defined));
        }
        if Path::new(spec).is_file() {
            return Err(error.hint(format!("put the function before the inputs: pcluster map file.py:function {spec}")));
        }
        return Err(error
            .hint("use file.py:function or package.module:function")
            .hint("to run a command, put it after two dashes: pcluster map inputs.txt -- wc -l {}"));
    };
    if !is_dotted_name(function) {
        return Err(
            CommandError::usage(format!("{function:?} in {spec:?} is not a valid name of a Python function"))
                .hint("use file.py:function or package.module:function"),
        );
    }
    Ok((from, function))
}

impl CommandError {
    /// Adds a hint that lists names, if there are any.
    fn hint_list(self, what: &str, names: &[String]) -> CommandError {
        match names {
            [] => self,
            names => self.hint(format!("{what}: {}", names.iter().take(20).cloned().collect::<Vec<_>>().join(", "))),
        }
    }
}

/// Whether a name denotes a file rather than a module.
fn is_file(from: &str) -> bool {
    from.ends_with(".py") || from.contains('/')
}

fn is_dotted_name(text: &str) -> bool {
    text.split('.').all(is_name)
}

/// Whether it is a valid Python identifier.
pub(crate) fn is_name(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|c| c.is_alphabetic() || c == '_') && characters.all(|c| c.is_alphanumeric() || c == '_')
}

/// A Python script as work for the engines' namespaces.
pub(crate) fn script(file: &str, code: &CodeArgs) -> Result<Work, CommandError> {
    Ok(Work::Execute {
        code: String::new(),
        filename: file.into(),
        bundle: Some(Box::new(code::bundle(file, source(file)?, &code.with)?)),
    })
}

/// The bytes of a Python file, in an encoding that Python accepts.
pub(crate) fn source(file: &str) -> Result<Bytes, CommandError> {
    let path = Path::new(file);
    let cannot = |why: String| CommandError::usage(format!("cannot read the Python file {file}: {why}"));
    let facts = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let here = std::env::current_dir()
                .map(|d| d.display().to_string())
                .unwrap_or_else(|_| "?".into());
            CommandError::usage(format!("no Python file {file} (in {here})"))
        }
        _ => cannot(error.to_string()),
    })?;
    if facts.is_dir() {
        return Err(cannot("it is a directory".into()));
    }
    if facts.len() > MAX_INPUTS_BYTES {
        return Err(
            cannot(format!("it has {} bytes, and all of it is sent to every engine", facts.len()))
                .hint("pass data as inputs, not in the source"),
        );
    }
    let bytes = std::fs::read(path).map_err(|e| cannot(e.to_string()))?;
    match std::str::from_utf8(&bytes) {
        Err(error) if code::declared_encoding(&bytes).is_none() => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            Err(cannot(format!("line {line} is not UTF-8 text"))
                .hint("save the file as UTF-8, or declare its encoding in the first line: # coding: latin-1"))
        }
        _ => Ok(bytes.into()),
    }
}

/// False only if the text certainly does not define the name: neither the word nor anything that defines names indirectly occurs.
fn may_define(text: &str, function: &str) -> bool {
    let name = function.split('.').next().unwrap_or(function);
    let unseen = [
        "import *",
        "import  *",
        "exec",
        "globals",
        "locals",
        "vars",
        "setattr",
        "__dict__",
        "__getattr__",
    ];
    has_word(text, name) || unseen.iter().any(|word| text.contains(word)) || !text.is_ascii()
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !part_of_name(text[..at].chars().next_back()) && !part_of_name(text[at + word.len()..].chars().next()))
}

fn unknown_function(file: &str, text: &str, function: &str) -> CommandError {
    let error = CommandError::usage(format!("{file} defines no function `{function}`"));
    let defined = defined_names(text);
    match defined.iter().map(|name| (strsim::levenshtein(name, function), name)).min() {
        Some((edits, name)) if edits <= 1 + function.len() / 4 => error.hint(format!("did you mean {file}:{name}?")),
        _ => error.hint_list("it defines", &defined),
    }
}

/// Functions defined at module level.
fn defined_names(text: &str) -> Vec<String> {
    let starts = ["def ", "async def "];
    let names = text.lines().filter_map(|line| {
        let rest = starts.iter().find_map(|start| line.strip_prefix(start))?.trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (!name.is_empty()).then_some(name)
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.py");
        std::fs::write(&path, text).unwrap();
        (dir, path.to_str().unwrap().to_string())
    }

    fn fails(spec: &str) -> String {
        let error = work(spec, &CodeArgs::default()).unwrap_err();
        assert_eq!(error.kind.code(), 2);
        error.render(false)
    }

    #[test]
    fn a_file_is_sent_and_a_module_is_referenced() {
        let (_dir, path) = file(b"def f(x):\n    return x\n");
        let work = |spec: &str| work(spec, &CodeArgs::default()).unwrap();
        let call = work(&format!("{path}:f"));
        let bundle = call.bundle().unwrap();
        assert_eq!((bundle.name.as_str(), bundle.entry.as_str()), (path.as_str(), "jobs.py"));
        assert_eq!(call.default_name(), format!("{path}:f"));
        let module = work("os.path:basename");
        assert_eq!((module.bundle(), module.default_name().as_str()), (None, "os.path:basename"));
    }

    #[test]
    fn the_bytes_are_sent_in_their_original_encoding() {
        let latin = b"# -*- coding: latin-1 -*-\ndef f(x):\n    return '\xe9'\n";
        let (_dir, path) = file(latin);
        let call = work(&format!("{path}:f"), &CodeArgs::default()).unwrap();
        let files = call.bundle().unwrap().content.as_ref().unwrap().files().unwrap();
        assert_eq!(files[0].content, latin.as_slice());
    }

    #[test]
    fn a_missing_function_lists_the_defined_ones() {
        let (_dir, path) = file(b"def two_digit_counts(p): pass\ndef add(a, b): pass\n");
        assert!(fails(&format!("{path}:two_digit_count")).contains(":two_digit_counts?"));
        assert!(fails(&format!("{path}:other_thing")).contains("it defines: two_digit_counts, add"));
        assert!(fails(&path).contains(&format!("{path}:two_digit_counts")));
        assert!(fails("nothing.py:f").contains("no Python file nothing.py (in /"));
        assert!(fails("f").contains("does not name a function"));
        assert!(fails("a.py:1f").contains("is not a valid name"));
        assert!(fails("a b:f").contains("neither a Python file"));
        let (_dir, path) = file(b"x = 1\ny = '\xff'\n");
        assert!(fails(&format!("{path}:f")).contains("line 2 is not UTF-8"));
    }

    #[test]
    fn valid_code_is_never_rejected() {
        for text in [
            "from m import *\n",
            "f = lambda x: x\n",
            "from a import f\n",
            "globals()['f'] = 1\n",
            "import g as f\n",
            "class f:\n  pass\n",
        ] {
            let (_dir, path) = file(text.as_bytes());
            assert!(work(&format!("{path}:f.g"), &CodeArgs::default()).is_ok(), "{text}");
        }
    }
}
