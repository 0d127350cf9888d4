//! Comparisons of messages with literals. A message is for people: its wording may change, and must not decide anything.
use super::source::is_word;

/// Names of values that hold a message or a state from elsewhere.
const MESSAGES: &[&str] = &["reason", "why", "message", "state", "error", "problem", "hint", "description"];
/// Methods that only convert; the name of the value comes before them.
const CONVERSIONS: &[&str] = &[
    "as_str",
    "as_ref",
    "as_deref",
    "clone",
    "trim",
    "trim_start",
    "trim_end",
    "to_lowercase",
    "to_ascii_lowercase",
    "to_string",
    "to_uppercase",
    "to_ascii_uppercase",
    "unwrap_or_default",
];
const METHODS: &[&str] = &["contains", "starts_with", "ends_with", "strip_prefix", "strip_suffix", "eq", "find"];

/// The comparisons in `code`, whose literals are blanked out.
pub fn comparisons(code: &str) -> Vec<String> {
    let is_message = |value: &&str| name_of(value).is_some_and(|name| MESSAGES.contains(&name)) || value.ends_with(".to_string()");
    let by_method = METHODS.iter().flat_map(|method| {
        let call = format!(".{method}(\"\"");
        code.match_indices(&call)
            .map(|(at, _)| value_before(&code[..at]))
            .collect::<Vec<_>>()
    });
    let by_operator = ["== \"\"", "!= \"\""].iter().flat_map(|operator| {
        code.match_indices(operator)
            .map(|(at, _)| value_before(&code[..at]))
            .collect::<Vec<_>>()
    });
    let by_pattern = ["matches!(", "match "].iter().flat_map(|keyword| {
        let whole = code.match_indices(keyword).filter(|(at, _)| !code[..*at].ends_with(is_word));
        let values = whole.map(|(at, _)| code[at + keyword.len()..].split([',', '{']).next().unwrap_or_default().trim());
        values
            .filter(|value| value.ends_with("as_str()") || value.ends_with("as_deref()"))
            .map(value_before)
            .collect::<Vec<_>>()
    });
    let found = by_method.chain(by_operator).chain(by_pattern);
    found.filter(is_message).map(str::to_string).collect()
}

/// The value that ends the text: `engine.state.as_str()`.
fn value_before(text: &str) -> &str {
    let text = text.trim_end();
    let mut depth = 0;
    let mut start = text.len();
    for (at, c) in text.char_indices().rev() {
        match c {
            ')' | ']' => depth += 1,
            '(' | '[' if depth > 0 => depth -= 1,
            _ if depth > 0 || is_word(c) || matches!(c, '.' | ':') => (),
            // A chain of methods over several lines.
            c if c.is_whitespace() && text[at..].trim_start().starts_with('.') => (),
            _ => break,
        }
        start = at;
    }
    text[start..].trim_start()
}

/// The last name of a value, before conversions.
fn name_of(value: &str) -> Option<&str> {
    let parts = value
        .rsplit('.')
        .map(|part| part.trim().split(['(', '[']).next().unwrap_or_default());
    parts.into_iter().find(|part| !CONVERSIONS.contains(part))
}
