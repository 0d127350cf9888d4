//! What a task has written, kept within bounds: its beginning and its end, and how much was cut between them.

/// Bytes of each stream that are kept from the beginning.
pub const HEAD: usize = 512 << 10;
/// ... and from the end.
pub const TAIL: usize = 512 << 10;

/// Consecutive bytes of one stream, `cut` of them left out between `head` and `tail`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    pub head: Vec<u8>,
    pub cut: u64,
    pub tail: Vec<u8>,
}

impl Pieces {
    pub fn whole(bytes: Vec<u8>) -> Pieces {
        Pieces {
            head: bytes,
            ..Pieces::default()
        }
    }
    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.cut == 0 && self.tail.is_empty()
    }
}

/// One stream of one task. What was taken is kept: whether it was recorded is not known before the task's result is.
#[derive(Debug)]
pub struct Text {
    head_left: usize,
    head: Vec<u8>,
    /// So much of the head was taken.
    taken: usize,
    tail: Vec<u8>,
    cut: u64,
}

impl Default for Text {
    fn default() -> Self {
        Text {
            head_left: HEAD,
            head: Vec::new(),
            taken: 0,
            tail: Vec::new(),
            cut: 0,
        }
    }
}

impl Text {
    /// For streams that are passed on as they come, and not kept.
    pub fn unbounded() -> Text {
        Text {
            head_left: usize::MAX,
            ..Text::default()
        }
    }

    pub fn push(&mut self, pieces: Pieces) {
        self.push_bytes(&pieces.head);
        if pieces.cut > 0 {
            if self.head_left == usize::MAX {
                self.head.extend_from_slice(note(pieces.cut).as_bytes());
            } else {
                // What is behind a gap belongs to the end.
                self.head_left = 0;
                self.cut += pieces.cut + self.tail.len() as u64;
                self.tail.clear();
            }
        }
        self.push_bytes(&pieces.tail);
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        let at = bytes.len().min(self.head_left);
        let (head, rest) = bytes.split_at(at);
        self.head.extend_from_slice(head);
        if self.head_left != usize::MAX {
            self.head_left -= at;
        }
        self.tail.extend_from_slice(rest);
        if self.tail.len() > 2 * TAIL {
            self.shorten_tail();
        }
    }

    fn shorten_tail(&mut self) {
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.cut += surplus as u64;
        self.tail.drain(..surplus);
    }

    /// What has come and will not be cut; a character that has come in part waits for its other part.
    pub fn take(&mut self) -> String {
        let whole = self.taken + whole_characters(&self.head[self.taken..]);
        if self.head_left == usize::MAX {
            let rest = self.head.split_off(whole);
            return text(std::mem::replace(&mut self.head, rest));
        }
        let taken = std::mem::replace(&mut self.taken, whole);
        text(self.head[taken..whole].to_vec())
    }

    /// Some of what [`Text::finish`] will give was taken.
    pub fn was_taken(&self) -> bool {
        self.taken > 0
    }

    /// All of it; of a stream that is not kept, what was not taken yet.
    pub fn finish(mut self) -> String {
        self.shorten_tail();
        let mut all = text(std::mem::take(&mut self.head));
        if self.cut > 0 {
            all.push_str(&note(self.cut));
        }
        all.push_str(&text(std::mem::take(&mut self.tail)));
        all
    }
}

fn note(cut: u64) -> String {
    format!("\n[... {cut} bytes cut ...]\n")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// How many bytes hold whole characters: all but an unfinished one at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            b if b & 0b1100_0000 == 0b1000_0000 => continue,
            b if b & 0b1110_0000 == 0b1100_0000 => 2,
            b if b & 0b1111_0000 == 0b1110_0000 => 3,
            b if b & 0b1111_1000 == 0b1111_0000 => 4,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn short_output_comes_back_whole(chunks in proptest::collection::vec(("\\PC{0,9}", any::<bool>()), 0..20)) {
            let whole: String = chunks.iter().map(|(chunk, _)| chunk.as_str()).collect();
            let (mut text, mut passed_on) = (Text::default(), Text::unbounded());
            let (mut out, mut passed) = (String::new(), String::new());
            for (chunk, take) in &chunks {
                // byte by byte: characters arrive in parts
                for byte in chunk.bytes() {
                    text.push(Pieces::whole(vec![byte]));
                    passed_on.push(Pieces::whole(vec![byte]));
                    if *take {
                        out.push_str(&text.take());
                        passed.push_str(&passed_on.take());
                    }
                }
            }
            passed.push_str(&passed_on.finish());
            prop_assert_eq!(&passed, &whole);
            out.push_str(&text.take());
            prop_assert_eq!(out, whole.as_str());
            prop_assert_eq!(text.finish(), whole);
        }
        #[test]
        fn any_bytes_are_bounded(chunks in proptest::collection::vec((any::<u8>(), 0usize..900_000, 0u64..3), 0..8)) {
            let mut text = Text::default();
            let mut given = 0u64;
            for (byte, length, cut) in chunks {
                given += length as u64 + cut;
                text.push(Pieces { head: vec![byte & 0x7f; length], cut, tail: Vec::new() });
            }
            let out = text.finish();
            prop_assert!(out.len() <= HEAD + TAIL + 60);
            if let Some(cut) = out.split("[... ").nth(1).and_then(|rest| rest.split(' ').next()) {
                let note = format!("\n[... {cut} bytes cut ...]\n").len() as u64;
                prop_assert_eq!(out.len() as u64 - note + cut.parse::<u64>().unwrap(), given);
            } else {
                prop_assert_eq!(out.len() as u64, given);
            }
        }
    }

    #[test]
    fn long_output_keeps_both_ends() {
        let mut text = Text::default();
        let mut bytes = vec![b'a'; HEAD];
        bytes.extend(vec![b'b'; 3 * TAIL]);
        bytes.extend(vec![b'c'; TAIL]);
        text.push(Pieces::whole(bytes));
        let out = text.finish();
        assert!(out.starts_with("aaa") && out.ends_with("ccc") && !out.contains("bbb"));
        assert!(out.contains(&format!("[... {} bytes cut ...]", 3 * TAIL)));
    }
}
