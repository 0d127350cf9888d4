//! Replaces what differs between runs: temporary paths, process ids, times, durations, the host.
//!
//! Collapses column spacing: two or more spaces within a line count as two.

const UNITS: [&str; 7] = ["s", "ms", "µs", "ns", "m", "h", "d"];

/// `text` with placeholders such as `[TEMP]` for varying parts.
pub fn normalised(text: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.split_inclusive('\n').map(|line| normalised_line(line, host.trim())).collect()
}

fn normalised_line(line: &str, host: &str) -> String {
    let mut words: Vec<(String, String)> = Vec::new();
    for (word, separator) in split(line) {
        let before = words.last().map(|(word, _)| word.clone()).unwrap_or_default();
        if UNITS.contains(&word.as_str()) && is_number(&before) && words.last().is_some_and(|(_, gap)| gap == " ") {
            words.pop();
            words.push(("[DURATION]".into(), separator));
        } else if before == "peak" {
            words.push(("[SIZE]".into(), separator));
        } else if before == "process" && is_number(&word) {
            words.push(("[PID]".into(), separator));
        } else {
            words.push((placeholder(&word, host), separator));
        }
    }
    let line: String = words.into_iter().map(|(word, separator)| word + &separator).collect();
    line.replace("(just now)", "([AGO])").replace("([DURATION] ago)", "([AGO])")
}

/// Words, each with what stands between it and the next.
fn split(line: &str) -> Vec<(String, String)> {
    let between = |c: char| c.is_whitespace() || "(),;\"".contains(c);
    let mut found = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(between).unwrap_or(rest.len()));
        let (separator, after) = after.split_at(after.find(|c| !between(c)).unwrap_or(after.len()));
        let wide = !word.is_empty() && separator.len() > 1 && separator.bytes().all(|b| b == b' ');
        found.push((word.to_string(), if wide { "  ".into() } else { separator.to_string() }));
        rest = after;
    }
    found
}

fn placeholder(word: &str, host: &str) -> String {
    let bare = word.trim_end_matches(['.', ':']);
    let tail = &word[bare.len()..];
    let all_numbers = |separators: &[char]| bare.split(separators).all(is_number);
    let place = if let Some(at) = bare.find("/pcluster-test-") {
        let start = bare[..at].rfind("/tmp").unwrap_or(at);
        let below = bare[at + 1..].find('/').map_or("", |slash| &bare[at + 1 + slash..]);
        format!("{}[TEMP]{below}", &bare[..start])
    } else if bare.matches(':').count() == 2 && bare.contains('T') && bare.ends_with('Z') {
        "[DATE]".into()
    } else if bare.matches(':').count() == 2 && all_numbers(&[':']) {
        "[TIME]".into()
    } else if bare.matches('-').count() == 2 && all_numbers(&['-']) {
        "[DATE]".into()
    } else if bare == host && !host.is_empty() {
        "[HOST]".into()
    } else {
        bare.to_string()
    };
    place + tail
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.parse::<f64>().is_ok()
}

#[test]
fn normalising_replaces_only_what_varies() {
    let text =
        "  12.3 ok    in 0.21 s (process 483) at 2026-11-20 21:03:07.1, see /tmp/pcluster-test-Ab3/ipython/x.log: 3 done (just now)\n";
    assert_eq!(
        normalised(text),
        "  12.3 ok  in [DURATION] (process [PID]) at [DATE] [TIME], see [TEMP]/ipython/x.log: 3 done ([AGO])\n"
    );
}
