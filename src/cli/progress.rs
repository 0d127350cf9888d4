//! A map's progress bar: done, failed, running, rate, time left. On stderr, and only where that is a terminal.
use super::output::times::duration;
use crate::model::task::Counts;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The time window of the rate.
const WINDOW: Duration = Duration::from_secs(20);
/// Maps that finish sooner show no bar, to avoid flicker.
const MIN_DURATION: Duration = Duration::from_millis(250);

const TEMPLATE: &str = "{prefix} {wide_bar:.green} {counts}";

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    counts: Arc<Mutex<String>>,
    /// Whether a second line explains why the map does not get on.
    is_explained: bool,
    rate: Rate,
    began: Instant,
}

impl Progress {
    /// Draws nothing unless `visible`.
    pub(crate) fn new(name: &str, visible: bool) -> Progress {
        let counts = Arc::default();
        let bar = visible.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(TEMPLATE, &counts));
            bar.set_prefix(shortened(name, 24));
            bar
        });
        Progress {
            bar,
            counts,
            is_explained: false,
            rate: Rate::default(),
            began: Instant::now(),
        }
    }

    /// `total`: the final number of tasks, if known. `engines`: the number of engines that can run them.
    pub(crate) fn update(&mut self, counts: &Counts, total: Option<u64>, engines: u32) {
        let Some(bar) = &self.bar else { return };
        self.rate.add(Instant::now(), counts.done());
        if self.began.elapsed() < MIN_DURATION {
            return;
        }
        bar.set_length(total.unwrap_or(0).max(counts.total).max(1));
        bar.set_position(counts.done());
        if let Ok(mut text) = self.counts.lock() {
            *text = words(counts, total, engines, self.rate.per_second());
        }
        bar.tick();
    }

    /// Whether there is a bar.
    pub(crate) fn is_visible(&self) -> bool {
        self.bar.is_some()
    }

    /// Shows below the bar why the map does not get on; None: it does.
    pub(crate) fn explain(&mut self, why: Option<&str>, columns: usize) {
        let Some(bar) = &self.bar else { return };
        if why.is_none() && !self.is_explained {
            return;
        }
        let lines = why.map(|why| super::output::wrap(why, columns.saturating_sub(1)).join("\n"));
        bar.set_message(lines.unwrap_or_default());
        if why.is_some() != self.is_explained {
            self.is_explained = why.is_some();
            let template = if self.is_explained {
                format!("{TEMPLATE}\n{{msg}}")
            } else {
                TEMPLATE.to_string()
            };
            bar.set_style(style(&template, &self.counts));
        }
    }

    /// Hides the bar while something else is printed.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str, counts: &Arc<Mutex<String>>) -> ProgressStyle {
    let counts = Arc::clone(counts);
    let write = move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
        if let Ok(text) = counts.lock() {
            let _ = to.write_str(&text);
        }
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("counts", write).progress_chars("━╸ ")
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `12 of 15 done, 1 failed, 3 running, 2.1/s, 1 s left`
fn words(counts: &Counts, total: Option<u64>, engines: u32, rate: Option<f64>) -> String {
    let known = total.map(|t| t.max(counts.total));
    let mut text = match known {
        Some(total) => format!("{} of {total} done", counts.done()),
        None => format!("{} of {}+ done", counts.done(), counts.total),
    };
    if counts.failed() > 0 {
        text.push_str(&format!(", {} failed", counts.failed()));
    }
    // Engines hold prefetched tasks without reporting when each begins; an engine runs one at a time.
    let running = (counts.running + counts.assigned).min(u64::from(engines)).max(counts.running);
    if running > 0 {
        text.push_str(&format!(", {running} running"));
    }
    if let Some(rate) = rate.filter(|r| *r > 0.0) {
        text.push_str(&match rate {
            r if r >= 10.0 => format!(", {r:.0}/s"),
            r if r >= 0.1 => format!(", {r:.1}/s"),
            r => format!(", {:.1}/min", r * 60.0),
        });
        if let Some(left) = known.map(|total| total.saturating_sub(counts.done())).filter(|left| *left > 0) {
            text.push_str(&match (left as f64 / rate).ceil() {
                seconds if seconds < 60.0 => format!(", {seconds:.0} s left"),
                seconds => format!(", {} left", duration(seconds)),
            });
        }
    }
    text
}

fn shortened(name: &str, most: usize) -> String {
    match name.chars().count() > most {
        true => format!("…{}", name.chars().skip(name.chars().count() - most + 1).collect::<String>()),
        false => name.to_string(),
    }
}

/// Tasks per second over a time window.
#[derive(Default)]
struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn add(&mut self, now: Instant, done: u64) {
        self.seen.push_back((now, done));
        // Keeps one sample older than the window, so that slow tasks have a rate too.
        while self.seen.len() > 2 && self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.seen.pop_front();
        }
        if self.seen.len() > 1000 {
            self.seen.remove(1);
        }
    }

    fn per_second(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.seen.front()?, self.seen.back()?);
        let seconds = to.duration_since(*from).as_secs_f64();
        (seconds > 0.0).then(|| after.saturating_sub(*before) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_done_failed_running_rate_and_time_left() {
        let counts = Counts {
            total: 15,
            ok: 3,
            error: 1,
            running: 2,
            assigned: 2,
            ..Counts::default()
        };
        assert_eq!(
            words(&counts, Some(15), 4, Some(0.5)),
            "4 of 15 done, 1 failed, 4 running, 0.5/s, 22 s left"
        );
        assert_eq!(words(&counts, None, 3, Some(0.05)), "4 of 15+ done, 1 failed, 3 running, 3.0/min");
        let done = Counts {
            total: 15,
            ok: 15,
            ..Counts::default()
        };
        assert_eq!(words(&done, Some(15), 4, Some(1234.5)), "15 of 15 done, 1234/s");
        assert_eq!(words(&Counts::default(), Some(15), 0, None), "0 of 15 done");
        assert_eq!(
            words(
                &Counts {
                    total: 5,
                    ok: 1,
                    ..Counts::default()
                },
                Some(15),
                4,
                Some(0.0)
            ),
            "1 of 15 done"
        );
    }

    #[test]
    fn the_rate_covers_a_recent_window() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        for second in 0..100u64 {
            rate.add(start + Duration::from_secs(second), second * second);
        }
        // From 79² to 99² in 20 seconds, one sample more at most.
        let now = rate.per_second().unwrap();
        assert!((177.0..=179.0).contains(&now), "{now}");
        let mut slow = Rate::default();
        slow.add(start, 0);
        slow.add(start + Duration::from_secs(600), 1);
        assert!(slow.per_second().unwrap() > 0.0);
    }

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(shortened("examples/pidigits.py:counts", 12), "…s.py:counts");
        assert_eq!(shortened("short", 12), "short");
    }
}
