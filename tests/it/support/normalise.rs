//! Takes out what differs from run to run: temporary paths, process ids, times, durations, the host.

/// `text` with placeholders such as `[PATH]` in the place of what varies.
pub fn normalised(text: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut text = text.to_string();
    if host.trim().len() > 2 {
        text = text.replace(host.trim(), "[HOST]");
    }
    text.split_inclusive(['\n', ' ', '(', ')', ',', '"'])
        .map(|piece| {
            let end = piece.trim_end_matches(['\n', ' ', '(', ')', ',', '"']);
            format!("{}{}", word(end), &piece[end.len()..])
        })
        .collect()
}

fn word(word: &str) -> String {
    let bare = word.trim_end_matches(['.', ':', ';']);
    let tail = &word[bare.len()..];
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let place = if let Some(at) = bare.find("/pcluster-test-") {
        let start = bare[..at].rfind("/tmp").unwrap_or(at);
        let below = bare[at + 1..].find('/').map_or("", |slash| &bare[at + 1 + slash..]);
        format!("{}[TEMP]{below}", &bare[..start])
    } else if bare.split(':').count() == 3 && bare.split([':', '.']).all(digits) {
        "[TIME]".into()
    } else if bare.split('-').count() == 3 && bare.split('-').all(digits) {
        "[DATE]".into()
    } else if is_duration(bare) {
        "[DURATION]".into()
    } else if digits(bare) && bare.len() > 4 {
        "[NUMBER]".into()
    } else {
        bare.to_string()
    };
    place + tail
}

/// `0.2s`, `12ms`, `1m03s`, `350µs`.
fn is_duration(word: &str) -> bool {
    let number = word.trim_end_matches(['s', 'm', 'µ', 'h', 'd', 'n']);
    let unit = &word[number.len()..];
    number.starts_with(|c: char| c.is_ascii_digit())
        && ["s", "ms", "µs", "ns", "m", "h", "d"].contains(&unit)
        && number.chars().all(|c| c.is_ascii_digit() || ".mhd".contains(c))
}

#[test]
fn normalising_takes_out_what_varies_and_nothing_else() {
    let text = "12.3 ok in 0.21s (pid 48213) at 2026-11-20 21:03:07.1, see /tmp/pcluster-test-Ab3/ipython/x.log: done\n";
    assert_eq!(
        normalised(text),
        "12.3 ok in [DURATION] (pid [NUMBER]) at [DATE] [TIME], see [TEMP]/ipython/x.log: done\n"
    );
}
