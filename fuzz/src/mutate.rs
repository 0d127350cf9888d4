//! Random changes of known good inputs: of bits and ranges, of lines, and of what text formats are made of.

/// SplitMix64: the same seed, the same inputs.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `bound`; 0 for 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or_default()
    }
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let long = 1 + self.below(32);
        start..(start + self.below(long + 1)).min(length)
    }
}

const TOKENS: &[&str] = &[
    "null",
    "true",
    "-1",
    "0",
    "1",
    "2",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1e308",
    "-1e-320",
    "1e999",
    "NaN",
    "\"\"",
    "[]",
    "{}",
    "[[[[]]]]",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "é",
    "\u{202e}",
    ":",
    ",",
    "\n",
    "\t",
    "..",
    "-",
    "all",
    "<IDS|MSG>",
    "%",
    "{",
    "}",
    "~",
    "'",
    "\\",
    "&a [*a]",
    "!!binary",
    "\0\0\0\0\0\0\0\0",
    "ÿÿÿÿÿÿÿÿ",
];

pub fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..1 + dice.below(8) {
        change(&mut bytes, corpus, dice);
    }
    bytes.truncate(1 << 16);
    bytes
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let length = bytes.len();
    match dice.below(11) {
        0 if length > 0 => bytes[dice.below(length)] ^= 1 << dice.below(8),
        1 => drop(bytes.drain(dice.range(length))),
        2 => {
            let piece = bytes[dice.range(length)].to_vec();
            insert(bytes, &piece, dice);
        }
        3 => insert(bytes, TOKENS[dice.below(TOKENS.len())].as_bytes(), dice),
        4 | 5 => replace_number(bytes, dice),
        6 => {
            let other = &corpus[dice.below(corpus.len())];
            let piece = other[dice.range(other.len())].to_vec();
            insert(bytes, &piece, dice);
        }
        7 | 8 => move_line(bytes, corpus, dice),
        9 => replace_word(bytes, dice),
        _ => bytes.truncate(dice.below(length + 1)),
    }
}

fn insert(bytes: &mut Vec<u8>, piece: &[u8], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    bytes.splice(at..at, piece.iter().copied());
}

/// A run of digits becomes another number.
fn replace_number(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let runs = runs(bytes, u8::is_ascii_digit);
    if runs.is_empty() {
        return;
    }
    let run = runs[dice.below(runs.len())].clone();
    bytes.splice(run, TOKENS[dice.below(17)].bytes());
}

/// A word becomes another of the same input, so that names meet where they should not.
fn replace_word(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let runs = runs(bytes, |b| b.is_ascii_alphanumeric() || *b == b'_');
    if runs.is_empty() {
        return;
    }
    let with = bytes[runs[dice.below(runs.len())].clone()].to_vec();
    let run = runs[dice.below(runs.len())].clone();
    bytes.splice(run, with);
}

fn runs(bytes: &[u8], is: impl Fn(&u8) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        if !is(byte) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// A line of this or another input is put somewhere else, twice, or away.
fn move_line(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let at = dice.below(lines.len());
    let line = match dice.below(4) {
        0 => lines.remove(at),
        1 => {
            lines.remove(at);
            *bytes = lines.join(&b'\n');
            return;
        }
        2 => lines[at].clone(),
        _ => {
            let other: Vec<&[u8]> = corpus[dice.below(corpus.len())].split(|b| *b == b'\n').collect();
            other[dice.below(other.len())].to_vec()
        }
    };
    lines.insert(dice.below(lines.len() + 1), line);
    *bytes = lines.join(&b'\n');
}

/// FNV-1a, for file names.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
