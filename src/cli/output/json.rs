//! JSON for programs: one versioned document (`{"version":1,"tasks":[…]}`), or one object per line.
use super::super::error::CommandError;
use serde::Serialize;
use std::io::Write;

/// Incremented when a key is removed or changes its meaning; keys may be added at any time.
pub(crate) const VERSION: u32 = 1;

/// One document, `{"version":1,…}` and the object's keys, to stdout.
pub(crate) fn print(object: &impl Serialize) -> Result<(), CommandError> {
    super::stdout(|out| write_object(out, object))
}

/// The document as text, for tests and files.
pub(crate) fn write_object(out: &mut dyn Write, object: &impl Serialize) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Document<'a, T> {
        version: u32,
        #[serde(flatten)]
        object: &'a T,
    }
    serde_json::to_writer_pretty(&mut *out, &Document { version: VERSION, object })?;
    out.write_all(b"\n")
}

/// A document with one, possibly long, list: each item is on a separate line.
pub(crate) struct List {
    empty: bool,
}

impl List {
    pub(crate) fn begin(out: &mut dyn Write, key: &str) -> std::io::Result<List> {
        write!(out, "{{\"version\":{VERSION},\"{key}\":[")?;
        Ok(List { empty: true })
    }
    pub(crate) fn item(&mut self, out: &mut dyn Write, item: &impl Serialize) -> std::io::Result<()> {
        out.write_all(if self.empty { b"\n" } else { b",\n" })?;
        self.empty = false;
        Ok(serde_json::to_writer(out, item)?)
    }
    pub(crate) fn end(self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(if self.empty { b"]}\n" } else { b"\n]}\n" })
    }
}

/// One object on one line.
pub(crate) fn line(out: &mut dyn Write, item: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, item)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_one_document() {
        for (items, text) in [
            (vec![], "{\"version\":1,\"maps\":[]}\n"),
            (vec![1, 2], "{\"version\":1,\"maps\":[\n1,\n2\n]}\n"),
        ] {
            let mut out = Vec::new();
            let mut list = List::begin(&mut out, "maps").unwrap();
            for item in &items {
                list.item(&mut out, item).unwrap();
            }
            list.end(&mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
        }
    }

    #[test]
    fn documents_have_a_version_first() {
        let mut out = Vec::new();
        write_object(&mut out, &serde_json::json!({"state": "running"})).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\n  \"version\": 1,\n  \"state\": \"running\"\n}\n"
        );
    }
}
