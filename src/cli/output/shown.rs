//! A task's output for display: truncated, with control characters escaped.
use super::visible::visible;
use crate::model::output::Output;
use std::fmt::Write;

/// The maximum number of bytes of an output shown.
const SHOWN: usize = 16 << 10;

/// The displayed part: text, with invalid UTF-8 and control characters (except tabs and newlines) escaped.
/// Also returns the number of remaining bytes.
pub(crate) fn shown(output: &Output) -> (String, u64) {
    let mut upto = output.bytes.len().min(SHOWN);
    // Not within a character.
    while upto < output.bytes.len() && upto > SHOWN - 4 && output.bytes[upto] & 0b1100_0000 == 0b1000_0000 {
        upto -= 1;
    }
    (escaped(&output.bytes[..upto]), output.size - upto as u64)
}

pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&visible(chunk.valid()));
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// `2.9 MB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_text_is_bounded_and_has_no_control_characters() {
        assert_eq!(shown(&"a\tb\n".into()), ("a\tb\n".into(), 0));
        assert_eq!(shown(&Output::whole(vec![b'\x1b', b'[', 0xff, b'\r'])).0, "\\u{1b}[\\xff\\r");
        let mut long = Output::from("é".repeat(SHOWN));
        long.size += 1_000_000;
        let (text, more) = shown(&long);
        assert_eq!(text.len() as u64 + more, long.size);
        assert!(text.chars().all(|c| c == 'é') && text.len() <= SHOWN);
        assert_eq!(
            ["999 bytes", "1.5 kB", "2.9 MB", "3.0 GB"],
            [999, 1_500, 2_900_000, 3_000_000_000].map(size)
        );
    }
}
