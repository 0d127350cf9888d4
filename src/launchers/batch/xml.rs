//! A minimal XML reader for `qstat -xml`: elements by name, and their text. Malformed XML yields
//! fewer elements, never an error.

/// The text between an element's start tag and its end tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a>(&'a str);

/// All elements of this name, at any depth. They must not be nested in each other.
pub(crate) fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = Element<'a>> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let (_, after) = rest.split_once(open.as_str())?;
            // Match `<job_list state="running">`, but not `<job_lists>`.
            if !after.starts_with(['>', ' ', '\n', '\t', '/']) {
                rest = after;
                continue;
            }
            let (head, body) = after.split_once('>')?;
            if head.ends_with('/') {
                rest = body;
                return Some(Element(""));
            }
            let (inner, after) = body.split_once(close.as_str())?;
            rest = after;
            return Some(Element(inner));
        }
    })
}

impl Element<'_> {
    /// The text of the first child element of this name; none if missing or empty.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let inner = elements(self.0, name).next()?;
        let text = inner.0.trim();
        let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")]
            .iter()
            .fold(text.to_string(), |text, (sign, character)| text.replace(sign, character));
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_and_their_text_are_found() {
        let text =
            "<?xml?><a><job state=\"r\"><n>1</n><t> a &lt;b&gt; &amp;amp; </t><q></q></job><jobs/><job/><job><n>2</n></job><job><n>3";
        let found: Vec<Option<String>> = elements(text, "job").map(|e| e.text("n")).collect();
        assert_eq!(found, [Some("1".into()), None, Some("2".into())]);
        let first = elements(text, "job").next().unwrap();
        assert_eq!(first.text("t").as_deref(), Some("a <b> &amp;"));
        assert_eq!(first.text("q"), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in "(<job|</job>|>|<n>|</n>|x| ){0,30}") {
            for element in elements(&text, "job") {
                let _ = element.text("n");
            }
        }
    }
}
