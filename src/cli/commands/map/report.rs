//! The report at the end of a map: what failed, how to see it, how to run it again, and which values JSON cannot represent.
use super::tip::Peaks;
use crate::cli::values::{error_text, input_text};
use crate::cli::{Context, output};
use crate::model::MapId;
use crate::model::definition::MapOptions;
use crate::model::engine::EngineStatus;
use crate::model::task::{Counts, TaskRow};
use std::time::Duration;

/// The maximum number of failures shown individually.
const SHOWN: usize = 5;
/// The maximum length of an input or an error message, in characters.
const WIDTH: usize = 200;

/// Collects failures from the results as they arrive.
pub(crate) struct Report {
    map: MapId,
    options: MapOptions,
    peaks: Peaks,
    /// Distinct failures, each with its count.
    failures: Vec<Failure>,
    more: u64,
    pickled: u64,
    /// The values are printed as JSON: values that it cannot represent exactly are reported.
    pub values_shown: bool,
    /// The cluster keeps running, so that failed tasks can be resubmitted.
    pub cluster_stays: bool,
}

struct Failure {
    task: String,
    input: String,
    error: String,
    traceback: String,
    times: u64,
}

impl Report {
    pub(crate) fn new(map: MapId, options: MapOptions) -> Report {
        Report {
            map,
            options,
            peaks: Peaks::default(),
            failures: Vec::new(),
            more: 0,
            pickled: 0,
            values_shown: true,
            cluster_stays: true,
        }
    }

    pub(crate) fn add(&mut self, row: &TaskRow) {
        self.peaks.add(row);
        if row.pickled.is_some() {
            self.pickled += 1;
        }
        if !row.state.is_failed() {
            return;
        }
        let error = row
            .error
            .as_ref()
            .map(error_text)
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| row.state.to_string());
        if let Some(same) = self.failures.iter_mut().find(|f| f.error == error) {
            same.times += 1;
            return;
        }
        if self.failures.len() >= SHOWN {
            self.more += 1;
            return;
        }
        self.failures.push(Failure {
            task: row.task.to_string(),
            input: row.input.as_deref().map(input_text).unwrap_or_default(),
            error,
            traceback: row.error.as_ref().map(|e| e.traceback.clone()).unwrap_or_default(),
            times: 1,
        });
    }

    /// Whether a tip is possible, so that it is worth asking for the engines.
    pub(crate) fn may_have_tip(&self) -> bool {
        self.peaks.is_enough(&self.options)
    }

    pub(crate) fn tip(&self, tasks: u64, engines: &[EngineStatus]) -> Option<String> {
        self.peaks.tip(&self.options, tasks, engines)
    }

    /// Prints the report to stderr.
    pub(crate) fn print(&self, context: &Context, counts: &Counts, took: Duration) {
        let text = self.text(counts, &context.options(), context.verbose > 0);
        if !text.is_empty() && !context.quiet {
            output::stderr_text(&output::visible::visible(&text));
        }
        if counts.failed() == 0 {
            context.note_verbose(format!(
                "{} tasks done in {}",
                counts.done(),
                output::times::duration(took.as_secs_f64())
            ));
        }
    }

    fn text(&self, counts: &Counts, options: &str, tracebacks: bool) -> String {
        let mut text = String::new();
        if self.pickled > 0 && self.values_shown {
            text.push_str(&format!(
                "note: JSON cannot represent {} exactly and shows a rendering; --format pickle and --reduce use the exact values\n",
                if self.pickled == 1 {
                    "1 value".to_string()
                } else {
                    format!("{} values", self.pickled)
                },
            ));
        }
        for failure in &self.failures {
            let times = match failure.times {
                1 => String::new(),
                n => format!(" (and {} more with the same error)", n - 1),
            };
            text.push_str(&format!(
                "task {} failed on input {}: {}{times}\n",
                failure.task,
                cut(&failure.input),
                cut(&failure.error)
            ));
            if tracebacks && !failure.traceback.is_empty() {
                for line in failure.traceback.trim_end().lines() {
                    text.push_str(&format!("  {line}\n"));
                }
            }
        }
        if self.more > 0 {
            text.push_str(&format!("… and {} other failures\n", self.more));
        }
        if counts.failed() > 0 {
            let (map, total) = (self.map, counts.total.max(counts.done()));
            text.push_str(&format!("{} of {total} tasks failed\n", counts.failed()));
            text.push_str(&format!("see them:  pcluster results{options} {map} --failed\n"));
            let start = if self.cluster_stays {
                String::new()
            } else {
                format!("pcluster start{options} -n 4; ")
            };
            text.push_str(&format!("run them again:  {start}pcluster resubmit{options} {map} --failed\n"));
        }
        text
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::row;
    use crate::model::pickled::Pickled;
    use crate::model::task::{TaskError, TaskState};

    fn failed(index: u32, evalue: &str) -> TaskRow {
        let error = TaskError {
            ename: "ValueError".into(),
            evalue: evalue.into(),
            traceback: "Traceback:\n  line 1\n".into(),
        };
        TaskRow {
            state: TaskState::Error,
            error: Some(error),
            ..row(index, None)
        }
    }

    #[test]
    fn failures_are_listed_once_each() {
        let mut report = Report::new(MapId(1), MapOptions::default());
        report.add(&row(0, Some("1")));
        report.add(&TaskRow {
            pickled: Some(Pickled::default()),
            ..row(1, None)
        });
        for index in 2..5 {
            report.add(&failed(index, "no digits"));
        }
        report.add(&failed(5, "too long"));
        let counts = Counts {
            total: 15,
            ok: 11,
            error: 4,
            ..Counts::default()
        };
        insta::assert_snapshot!(report.text(&counts, "", false), @r"
        note: JSON cannot represent 1 value exactly and shows a rendering; --format pickle and --reduce use the exact values
        task 1.2 failed on input in,2: ValueError: no digits (and 2 more with the same error)
        task 1.5 failed on input in,5: ValueError: too long
        4 of 15 tasks failed
        see them:  pcluster results 1 --failed
        run them again:  pcluster resubmit 1 --failed
        ");
        assert!(
            report
                .text(&counts, " --profile p", true)
                .contains("  Traceback:\n    line 1\ntask 1.5")
        );
        for index in 6..20 {
            report.add(&failed(index, &index.to_string()));
        }
        assert!(report.text(&counts, "", false).contains("… and 11 other failures\n"));
        assert_eq!(Report::new(MapId(1), MapOptions::default()).text(&Counts::default(), "", true), "");
    }
}
