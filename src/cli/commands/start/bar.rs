//! The progress of a start.
use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::output::visible::one_line;
use crate::cluster::StartProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A transient progress line on a terminal.
pub(crate) struct StartProgressBar<'a> {
    context: &'a Context,
    bar: ProgressBar,
}

impl<'a> StartProgressBar<'a> {
    pub(crate) fn new(context: &'a Context) -> StartProgressBar<'a> {
        let bar = ProgressBar::no_length();
        if !context.terminal.stderr || context.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        StartProgressBar { context, bar }
    }

    pub(crate) fn show(&mut self, progress: StartProgress) {
        match progress {
            StartProgress::Note(text) => self.bar.suspend(|| self.context.note(text)),
            StartProgress::ControllerStarting => self.bar.set_message("starting the controller"),
            StartProgress::ControllerWaits { job, state } => {
                let state = if state.is_empty() { "submitted".into() } else { state };
                self.bar.set_message(one_line(&format!("the controller is {job}: {state}")));
            }
            StartProgress::ControllerReady { pid } => self.bar.set_message(format!("the controller is ready (process {pid})")),
            StartProgress::EnginesStarting { n } => self.bar.set_message(format!("starting {}", counted(u64::from(n), "engine"))),
            StartProgress::Engines {
                registered,
                n,
                job: Some(job),
                left,
            } => {
                let left = if left.is_empty() { String::new() } else { format!(" ({left})") };
                let line = one_line(&format!("{job}: {registered}/{n} engines{left}"));
                match self.context.terminal.stderr {
                    true => self.bar.set_message(line),
                    false => self.context.note_verbose(line),
                }
            }
            StartProgress::Engines { registered, n, .. } => {
                let style = ProgressStyle::with_template("engines [{bar:30}] {pos}/{len} {elapsed}");
                self.bar
                    .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
                self.bar.set_length(u64::from(n));
                self.bar.set_position(u64::from(registered));
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for StartProgressBar<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}
