//! An ssh destination, as the user writes it.
use super::error::SshError;

/// `[user@]host`, a name of the user's ssh configuration, or `ssh://[user@]host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination(String);

impl Destination {
    /// Rejects text that ssh would take for an option, or that cannot be a host name.
    pub(crate) fn parse(text: &str) -> Result<Destination, SshError> {
        let why = if text.is_empty() || text.ends_with('@') {
            "it has no host"
        } else if text.starts_with('-') || text.contains("@-") {
            "it starts with a dash, like an option"
        } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "it contains a space or a control character"
        } else if !text.starts_with("ssh://") && text.rsplit('@').next().is_some_and(|h| h.matches(':').count() == 1) {
            "write a port as in ssh://user@host:2222"
        } else {
            return Ok(Destination(text.to_string()));
        };
        let text = text.to_string();
        Err(SshError::BadDestination { text, why })
    }
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_hosts_are_rejected() {
        for good in ["login", "me@login.cluster", "ssh://me@login:2222", "me@fd00::1"] {
            assert_eq!(Destination::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "me@", "-oProxyCommand=reboot", "me@-x", "a b", "a\nb", "me@login:2222"] {
            assert!(Destination::parse(bad).is_err(), "{bad:?}");
        }
    }
}
