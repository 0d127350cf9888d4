//! Measured values, their medians, and the tables in the pages.
use super::tools::Tools;
use crate::Places;
use crate::run::{captured, program};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

const MISSING: &str = "–";

/// The values of all rounds, by name.
#[derive(Default)]
pub struct Numbers(BTreeMap<String, Vec<f64>>);

impl Numbers {
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.entry(name.into()).or_default().push(value);
    }

    /// Adds the `key value` lines of a script as `name key`, and `name rate` in tasks per second.
    pub fn take(&mut self, name: &str, text: &str) -> Result<(), String> {
        let values = pairs(text);
        if values.is_empty() {
            return Err(format!("its output has no values: {text:?}"));
        }
        if let (Some(tasks), Some(seconds)) = (values.get("tasks"), values.get("seconds")) {
            self.add(format!("{name} rate"), tasks / seconds);
        }
        values.iter().for_each(|(key, value)| self.add(format!("{name} {key}"), *value));
        Ok(())
    }

    pub fn median(&self, name: &str) -> Option<f64> {
        self.0.get(name).map(|values| median(values))
    }

    pub fn highest(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.iter().copied().max_by(f64::total_cmp)
    }

    pub fn cell(&self, name: &str, shown: impl Fn(f64) -> String) -> String {
        self.median(name).map_or_else(|| MISSING.into(), shown)
    }
}

/// The `name value` lines of a script's output.
pub fn pairs(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter_map(|(name, value)| Some((name.into(), value.trim().parse().ok()?)))
        .collect()
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

/// `12,345`
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|g| std::str::from_utf8(g).ok())
        .collect();
    groups.join(",")
}

pub fn ratio(value: Option<f64>, base: Option<f64>, digits: usize) -> String {
    let ratio = value.zip(base).map(|(value, base)| value / base).filter(|ratio| ratio.is_finite());
    ratio.map_or_else(|| MISSING.into(), |ratio| format!("{ratio:.digits$}"))
}

/// A Markdown table whose first column is text and whose other columns are numbers.
pub fn table<R: AsRef<[String]>>(head: &[&str], rows: impl IntoIterator<Item = R>) -> String {
    let mut out = format!("| {} |\n|---|{}\n", head.join(" | "), "--:|".repeat(head.len() - 1));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.as_ref().join(" | "));
    }
    out
}

/// The date, the machine, and the versions.
fn head(places: &Places, rounds: usize, tools: &Tools) -> String {
    let output = |words: &[&str]| captured(&mut program(&places.root, words)).map_or_else(|_| "?".into(), |s| s.trim().to_string());
    let version = ["-c", "import platform; print(platform.python_version())"];
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut head = format!(
        "Measured on {} by `cargo xtask bench`: {} cores ({}), Linux {}, Python {}; medians of {rounds} rounds. \
         Other work ran on the machine too (load at the end: {}), so compare lines with each other.",
        output(&["date", "-u", "+%Y-%m-%d"]),
        std::thread::available_parallelism().map_or(1, |n| n.get()),
        model.unwrap_or("unknown"),
        output(&["uname", "-r"]),
        output(&[&[&*tools.python.to_string_lossy()][..], &version].concat()),
        load.split(' ').next().unwrap_or("?"),
    );
    for (what, list) in [("Peers", &tools.versions), ("Not measured", &tools.missing)] {
        if !list.is_empty() {
            let _ = write!(head, " {what}: {}.", list.join(", "));
        }
    }
    head + if tools.development { "\nDevelopment build.\n" } else { "\n" }
}

/// Prints the first page's tables and stores them in target/bench; unless `quick`, also writes each page's tables between its
/// marks.
pub fn publish(places: &Places, tools: &Tools, rounds: usize, quick: bool, mark: &str, pages: &[(&str, String)]) -> Result<(), String> {
    let head = head(places, rounds, tools);
    let file = tools.folder.join(format!("{}.md", mark.rsplit(' ').next().unwrap_or(mark)));
    let cannot = |what: &str, file: &std::path::Path, e: std::io::Error| format!("cannot {what} {}: {e}", file.display());
    for (i, (page, tables)) in pages.iter().enumerate() {
        let text = format!("{head}\n{tables}");
        if i == 0 {
            fs::write(&file, &text).map_err(|e| cannot("write", &file, e))?;
            println!("\n{text}");
        }
        if !quick {
            let page = places.root.join(page);
            let old = fs::read_to_string(&page).map_err(|e| cannot("read", &page, e))?;
            let new = between(&old, mark, &text).ok_or_else(|| format!("{} does not have the marks of {mark}", page.display()))?;
            fs::write(&page, new).map_err(|e| cannot("write", &page, e))?;
            println!("updated {}", page.display());
        }
    }
    if quick {
        println!("(--quick: pages are unchanged; the tables are in {})", file.display());
    }
    Ok(())
}

fn between(text: &str, mark: &str, tables: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {mark}: begin -->"), format!("<!-- {mark}: end -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n{end}{after}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
        assert_eq!(ratio(Some(3.0), Some(2.0), 1), "1.5");
        assert_eq!(
            (ratio(Some(3.0), Some(0.0), 1), ratio(None, Some(2.0), 1)),
            ("–".into(), "–".into())
        );
        assert_eq!((thousands(999.4), thousands(1_234_567.0)), ("999".into(), "1,234,567".into()));
    }

    #[test]
    fn scripts_print_names_and_values() {
        let mut numbers = Numbers::default();
        numbers
            .take("dask", "tasks 100\nseconds 0.5\nother words\nmedian_us 4000\n")
            .unwrap();
        assert_eq!(
            (numbers.median("dask rate"), numbers.median("dask median_us")),
            (Some(200.0), Some(4000.0))
        );
        assert_eq!(numbers.cell("dask p99_us", thousands), "–");
        assert!(numbers.take("Parsl", "Traceback").is_err());
    }

    #[test]
    fn only_the_text_between_the_marks_changes() {
        let page = |text| format!("a\n<!-- x: begin -->\n{text}\n<!-- x: end -->\nb\n");
        assert_eq!(between(&page("old"), "x", "new\n"), Some(page("new")));
        assert_eq!(between("no marks", "x", "new"), None);
    }
}
