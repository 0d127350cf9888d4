//! Puts the tables into a page, between two marks.
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- cargo xtask bench: begin -->";
const END: &str = "<!-- cargo xtask bench: end -->";

/// Between the marks of another part of the benchmark.
pub fn put_marked(page: &Path, part: &str, tables: &str) -> Result<(), String> {
    put_between(page, &format!("<!-- {part}: begin -->"), &format!("<!-- {part}: end -->"), tables)
}

pub fn put(page: &Path, tables: &str) -> Result<(), String> {
    put_between(page, BEGIN, END, tables)
}

fn put_between(page: &Path, begin: &str, end: &str, tables: &str) -> Result<(), String> {
    let said = |e: std::io::Error| format!("{}: {e}", page.display());
    let text = fs::read_to_string(page).map_err(said)?;
    let text = between(&text, begin, end, tables).ok_or_else(|| format!("{} does not have the marks {begin} and {end}", page.display()))?;
    fs::write(page, text).map_err(said)
}

fn between(text: &str, begin: &str, end: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{}\n{end}{after}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&page, BEGIN, END, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between(&new, BEGIN, END, "new\n").as_deref(), Some(new.as_str()));
        assert_eq!(between("no marks", BEGIN, END, "x"), None);
    }
}
