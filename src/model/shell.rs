//! Quoting for the POSIX shell: of scripts, and of command lines that are displayed to be copied.
use std::fmt::Display;

/// Quotes one word if a shell requires it.
pub(crate) fn quoted(text: impl Display) -> String {
    let text = text.to_string();
    // shlex quotes `=`, `,` and `%` too, which have no meaning in an argument and are frequent in options.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    match shlex::try_quote(&text) {
        Ok(text) => text.into_owned(),
        // A word cannot contain a NUL.
        Err(_) => format!("{text:?}"),
    }
}

/// Quotes several words.
pub(crate) fn quoted_words<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The options that select a cluster, without those that are the defaults, each with a leading
/// blank.
pub(crate) fn cluster_options(profile: &str, cluster_id: &str) -> String {
    let mut options = String::new();
    if profile != "default" {
        options.push_str(&format!(" --profile {}", quoted(profile)));
    }
    if !cluster_id.is_empty() {
        options.push_str(&format!(" --cluster-id {}", quoted(cluster_id)));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_unchanged_by_a_shell() {
        for text in [
            "plain",
            "my cluster",
            "it's",
            "a\"b",
            "$HOME",
            "",
            "-n",
            "~x",
            "é !",
            "a\nb",
            "--array=1-3,5%2",
            "$HOME `id` \"x\" \\ !",
        ] {
            let words = shlex::split(&format!("echo {}", quoted(text))).unwrap();
            assert_eq!(words, ["echo", text]);
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s x{}", quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("x{text}"));
        }
        assert_eq!(cluster_options("default", ""), "");
        assert_eq!(cluster_options("my cluster", "a'b"), " --profile 'my cluster' --cluster-id \"a'b\"");
        assert_eq!(cluster_options("mine", "night-2"), " --profile mine --cluster-id night-2");
    }
}
