//! Escapes text from engines, tasks, hosts and files for a terminal: it must not move the cursor, change earlier output, or inject
//! input. Data (values of `map`, output of commands, `results --format`, JSON) is not escaped.
//!
//! Source: ECMA-48 (control functions), Unicode UAX #9 (bidirectional formatting characters).
use std::borrow::Cow;

/// Escapes control characters except newline and tab (`\u{1b}`); removes colours (SGR sequences) and the carriage return at the
/// end of a line.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    match text.chars().any(|c| is_steering(c) && !matches!(c, '\n' | '\t')) {
        true => Cow::Owned(escaped(text, |c| is_steering(c) && !matches!(c, '\n' | '\t'))),
        false => Cow::Borrowed(text),
    }
}

/// The same on one line: newlines and tabs are escaped too.
pub(crate) fn one_line(text: &str) -> String {
    match text.chars().any(is_steering) {
        true => escaped(text, is_steering),
        false => text.to_string(),
    }
}

/// C0, DEL and C1 characters, and bidirectional formatting.
fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = after_colour(rest) {
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '\r' if rest.starts_with('\n') && !is_bad('\n') => {}
            c if is_bad(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// The rest of the text after a leading SGR sequence: `ESC [ 1 ; 31 m`.
fn after_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    parameters
        .trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, ';' | ':'))
        .strip_prefix('m')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_are_escaped_and_colours_removed() {
        for (text, shown) in [
            ("plain\n\ttext é 日本\n", "plain\n\ttext é 日本\n"),
            ("\u{1b}]0;title\u{7}x", "\\u{1b}]0;title\\u{7}x"),
            ("\u{1b}[2J\u{1b}[1;31mred\u{1b}[0m", "\\u{1b}[2Jred"),
            ("\u{9b}2J\u{7f}\0\u{8}", "\\u{9b}2J\\u{7f}\\u{0}\\u{8}"),
            ("one\r\ntwo\rthree", "one\ntwo\\rthree"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(one_line("a\n\tb\r\n\u{1b}[1mc"), "a\\n\\tb\\r\\nc");
    }

    proptest! {
        #[test]
        fn arbitrary_text_yields_no_control_characters(text in any::<String>()) {
            prop_assert!(!visible(&text).chars().any(|c| is_steering(c) && !matches!(c, '\n' | '\t')));
            prop_assert!(!one_line(&text).chars().any(is_steering));
            if !text.chars().any(is_steering) {
                prop_assert_eq!(visible(&text), text.as_str());
            }
        }
    }
}
