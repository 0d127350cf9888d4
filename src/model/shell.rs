//! Command lines for display, to be copied into a shell.
use std::fmt::Display;

/// Quotes one word if a shell requires it.
pub(crate) fn word(text: impl Display) -> String {
    let text = text.to_string();
    match shlex::try_quote(&text) {
        Ok(quoted) => quoted.into_owned(),
        // A word cannot contain a NUL.
        Err(_) => format!("{text:?}"),
    }
}

/// The options that select a cluster, without those that are the defaults, each with a leading
/// blank.
pub(crate) fn cluster_options(profile: &str, cluster_id: &str) -> String {
    let mut options = String::new();
    if profile != "default" {
        options.push_str(&format!(" --profile {}", word(profile)));
    }
    if !cluster_id.is_empty() {
        options.push_str(&format!(" --cluster-id {}", word(cluster_id)));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_by_a_shell_as_it_was() {
        for text in ["plain", "my cluster", "it's", "a\"b", "$HOME", "", "-n", "~x", "é !", "a\nb"] {
            let words = shlex::split(&format!("echo {}", word(text))).unwrap();
            assert_eq!(words, ["echo", text]);
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s x{}", word(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("x{text}"));
        }
        assert_eq!(cluster_options("default", ""), "");
        assert_eq!(cluster_options("my cluster", "a'b"), " --profile 'my cluster' --cluster-id \"a'b\"");
        assert_eq!(cluster_options("mine", "night-2"), " --profile mine --cluster-id night-2");
    }
}
