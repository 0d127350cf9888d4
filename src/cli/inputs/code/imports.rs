//! Finds the import statements of a Python source without Python: everywhere, including functions, `try` and `if`.
//!
//! A small tokenizer recognizes strings (including nested f-strings), comments and brackets, so that text that only looks like an
//! import is ignored. Source that Python cannot compile yields what can be found.

/// `import module`, or `from module import names`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    /// Number of leading dots: 0 for an absolute import.
    pub level: usize,
    /// `a.b`; empty for `from . import x`.
    pub module: String,
    /// The names of a `from` import, including `*`.
    pub names: Vec<String>,
}

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    /// A character that is an operator or part of one.
    Operator(u8),
    /// The end of a logical line.
    Newline,
    /// A string or a number.
    Other,
}

/// The imports of a source in their order.
pub(super) fn imports(source: &[u8]) -> Vec<Import> {
    let mut tokens = Tokens {
        source: source.strip_prefix(b"\xef\xbb\xbf").unwrap_or(source),
        at: 0,
        depth: 0,
        pairs: is_multibyte(source),
    };
    let mut found = Vec::new();
    let mut begins = true;
    while let Some(token) = tokens.next() {
        begins = match token {
            Token::Name(word) if begins && word == "import" => tokens.import(&mut found),
            Token::Name(word) if begins && word == "from" => tokens.from(&mut found),
            Token::Newline => true,
            // After the colon of `if x:`. Elsewhere no import can follow.
            Token::Operator(b';' | b':') => tokens.depth == 0,
            _ => false,
        };
    }
    found
}

/// The encoding declared in the first two lines (PEP 263).
pub(crate) fn declared_encoding(source: &[u8]) -> Option<String> {
    source.split(|byte| *byte == b'\n').take(2).find_map(|line| {
        let line = String::from_utf8_lossy(line);
        let comment = line
            .trim_start_matches('\u{feff}')
            .trim_start_matches([' ', '\t', '\u{c}'])
            .strip_prefix('#')?
            .to_string();
        let rest = &comment[comment.find("coding")? + "coding".len()..];
        let rest = rest.strip_prefix([':', '='])?.trim_start_matches([' ', '\t']);
        let name: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
            .collect();
        (!name.is_empty()).then(|| name.to_ascii_lowercase().replace('_', "-"))
    })
}

/// Whether the second byte of a character may be one of ASCII.
fn is_multibyte(source: &[u8]) -> bool {
    const NAMES: [&str; 9] = ["sjis", "shift", "932", "gbk", "936", "gb18030", "big5", "949", "johab"];
    declared_encoding(source).is_some_and(|name| NAMES.iter().any(|part| name.contains(part)))
}

struct Tokens<'a> {
    source: &'a [u8],
    at: usize,
    /// Open brackets.
    depth: usize,
    pairs: bool,
}

impl Tokens<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.source.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn is_over(&self) -> bool {
        self.at >= self.source.len()
    }

    /// Advances by one character.
    fn step(&mut self) {
        self.at += if self.pairs && self.peek(0) > 0x80 { 2 } else { 1 };
    }

    fn next(&mut self) -> Option<Token> {
        while !self.is_over() {
            match self.peek(0) {
                b' ' | b'\t' | b'\x0c' => self.at += 1,
                b'#' => {
                    while !self.is_over() && !matches!(self.peek(0), b'\n' | b'\r') {
                        self.at += 1;
                    }
                }
                b'\\' => {
                    self.at += 1;
                    self.line_end();
                }
                b'\n' | b'\r' => {
                    self.line_end();
                    if self.depth == 0 {
                        return Some(Token::Newline);
                    }
                }
                b'"' | b'\'' => {
                    self.string(false, false);
                    return Some(Token::Other);
                }
                byte if byte.is_ascii_digit() => {
                    self.number();
                    return Some(Token::Other);
                }
                byte if is_part_of_name(byte) => return Some(self.name_or_string()),
                byte => {
                    self.at += 1;
                    match byte {
                        b'(' | b'[' | b'{' => self.depth += 1,
                        b')' | b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                        _ => {}
                    }
                    return Some(Token::Operator(byte));
                }
            }
        }
        None
    }

    fn line_end(&mut self) {
        if self.peek(0) == b'\r' && self.peek(1) == b'\n' {
            self.at += 1;
        }
        if matches!(self.peek(0), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    /// `1e5`, `0xff`, `1_000`, `1.5j`; also `1if`, whose word does not begin a statement.
    fn number(&mut self) {
        while is_part_of_name(self.peek(0)) || (self.peek(0) == b'.' && self.peek(1).is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn name_or_string(&mut self) -> Token {
        let start = self.at;
        while !self.is_over() && is_part_of_name(self.peek(0)) {
            self.step();
        }
        let word = &self.source[start..self.at.min(self.source.len())];
        if matches!(self.peek(0), b'"' | b'\'') && word.len() <= 2 {
            let has = |letter: u8| word.iter().any(|byte| byte.to_ascii_lowercase() == letter);
            if word.iter().all(|byte| b"rbuft".contains(&byte.to_ascii_lowercase())) {
                self.string(has(b'r'), has(b'f') || has(b't'));
                return Token::Other;
            }
        }
        Token::Name(String::from_utf8_lossy(word).into_owned())
    }

    /// A string from its first quote to its last; an unclosed one ends with its line.
    fn string(&mut self, raw: bool, formatted: bool) {
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        while !self.is_over() {
            let byte = self.peek(0);
            if byte == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                return;
            }
            match byte {
                b'\n' | b'\r' if !triple => return,
                // A backslash protects a quote in a raw string, too.
                b'\\' if formatted && raw && matches!(self.peek(1), b'{' | b'}') => self.at += 1,
                b'\\' if formatted && !raw && self.peek(1) == b'N' && self.peek(2) == b'{' => {
                    while !self.is_over() && !matches!(self.peek(0), b'}' | b'\n') && self.peek(0) != quote {
                        self.at += 1;
                    }
                    self.at += usize::from(self.peek(0) == b'}');
                }
                b'\\' => {
                    self.at += 1;
                    match self.peek(0) {
                        b'\n' | b'\r' => self.line_end(),
                        b'{' | b'}' if formatted => {}
                        _ => self.step(),
                    }
                }
                b'{' if formatted && self.peek(1) == b'{' => self.at += 2,
                b'{' if formatted => {
                    self.at += 1;
                    self.field(quote, triple);
                }
                _ => self.step(),
            }
        }
    }

    /// A field in braces of an f-string, including its closing brace.
    fn field(&mut self, quote: u8, triple: bool) {
        let outer = std::mem::replace(&mut self.depth, 1);
        while !self.is_over() && self.depth > 0 {
            if self.depth == 1 && self.peek(0) == b':' {
                self.at += 1;
                self.format(quote, triple);
                break;
            }
            if !triple && matches!(self.peek(0), b'\n' | b'\r') && self.depth > 50 {
                break;
            }
            // Before Python 3.12, the quote of the string ends it in any case.
            let closes = self.peek(0) == quote && self.depth == 1 && !self.is_string_ahead(quote, triple);
            if closes || self.next().is_none() {
                break;
            }
        }
        self.depth = outer;
    }

    /// Whether a quote in a field begins a string that ends before the line does.
    fn is_string_ahead(&self, quote: u8, triple: bool) -> bool {
        if triple {
            return self.peek(1) != quote || self.peek(2) != quote;
        }
        let rest = &self.source[self.at + 1..];
        let line = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        rest[..line].contains(&quote)
    }

    /// The format specification of a field, with nested fields, including the closing brace of the outer field.
    fn format(&mut self, quote: u8, triple: bool) {
        while !self.is_over() {
            match self.peek(0) {
                b'}' => {
                    self.at += 1;
                    return;
                }
                b'{' => {
                    self.at += 1;
                    self.field(quote, triple);
                }
                b'\n' | b'\r' if !triple => return,
                byte if byte == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) => return,
                _ => self.step(),
            }
        }
    }

    /// After `import`: whether a statement may begin next.
    fn import(&mut self, found: &mut Vec<Import>) -> bool {
        loop {
            let (module, mut next) = self.dotted(None);
            if !module.is_empty() {
                found.push(Import {
                    module,
                    ..Import::default()
                });
            }
            if next == Some(Token::Name("as".into())) {
                self.next();
                next = self.next();
            }
            match next {
                Some(Token::Operator(b',')) => {}
                next => return ends(next.as_ref()),
            }
        }
    }

    /// After `from`: whether a statement may begin next.
    fn from(&mut self, found: &mut Vec<Import>) -> bool {
        let mut level = 0;
        let mut first = self.next();
        while first == Some(Token::Operator(b'.')) {
            level += 1;
            first = self.next();
        }
        let (module, next) = match first {
            Some(Token::Name(word)) if word == "import" => (String::new(), Some(Token::Name(word))),
            first => self.dotted(first),
        };
        if next != Some(Token::Name("import".into())) || (module.is_empty() && level == 0) {
            return ends(next.as_ref());
        }
        let mut names = Vec::new();
        let end = loop {
            match self.next() {
                Some(Token::Name(word)) if word == "as" => {
                    self.next();
                }
                Some(Token::Name(name)) => names.push(name),
                Some(Token::Operator(b'*')) => names.push("*".into()),
                Some(Token::Operator(b'(' | b')' | b',')) => {}
                other => break other,
            }
        };
        found.push(Import { level, module, names });
        ends(end.as_ref())
    }

    /// `a.b.c` and the token after it.
    fn dotted(&mut self, first: Option<Token>) -> (String, Option<Token>) {
        let mut module = String::new();
        let mut token = first.or_else(|| self.next());
        while let Some(Token::Name(part)) = token {
            module.push_str(&part);
            token = self.next();
            if token != Some(Token::Operator(b'.')) {
                break;
            }
            module.push('.');
            token = self.next();
        }
        (module, token)
    }
}

fn ends(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Newline | Token::Operator(b';')))
}

fn is_part_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `a`, `.b:x,y`.
    fn found(source: &str) -> Vec<String> {
        let show = |i: Import| {
            let names = if i.names.is_empty() {
                String::new()
            } else {
                format!(":{}", i.names.join(","))
            };
            format!("{}{}{names}", ".".repeat(i.level), i.module)
        };
        imports(source.as_bytes()).into_iter().map(show).collect()
    }

    #[test]
    fn each_form_of_import_is_found() {
        for (source, expected) in [
            ("import a", "a"),
            ("import a, b.c as d,e", "a b.c e"),
            ("from a import b", "a:b"),
            ("from a.b import c as d, e", "a.b:c,e"),
            ("from . import x", ".:x"),
            ("from.import x", ".:x"),
            ("from ...a.b import x", "...a.b:x"),
            ("from .. a import (x,\n  y as z,  # import no\n )\nimport b", "..a:x,y b"),
            ("from a import *", "a:*"),
            ("x = 1; import a; import b\nimport c", "a b c"),
            ("if x: import a\nelse: from b import c", "a b:c"),
            ("try:\n\timport a\nexcept ImportError: import b", "a b"),
            ("def f():\n    import a\n    return a", "a"),
            ("class A: import a", "a"),
            ("import \\\n  a, \\\r\n  b", "a b"),
            ("from a \\\n import b", "a:b"),
            ("\u{feff}import a", "a"),
            ("import a\rimport b\r\nimport c", "a b c"),
            ("import a # import b", "a"),
            ("if x[1:2]: import a", "a"),
            ("if (lambda: 1)(): import a", "a"),
            ("x = f'{y!r:>{n}}'; import a", "a"),
            ("x = f\"{d[\"import b\"]}\"\nimport a", "a"),
            ("x = f'{{'\nimport a", "a"),
            ("x = rf'\\{y}'\nimport a", "a"),
            ("x = f'\\N{DASH}{y}'\nimport a", "a"),
            ("x = f'{y:'\nimport a", "a"),
            ("x = 'unclosed\nimport a", "a"),
            ("x = b'\\''; import a", "a"),
            ("é = 1\nimport ä.ö", "ä.ö"),
            ("x = 0xfrom; import a", "a"),
        ] {
            assert_eq!(found(source).join(" "), expected, "{source:?}");
        }
    }

    #[test]
    fn text_that_resembles_an_import_is_ignored() {
        for source in [
            "'import a'",
            "'''\nimport a\n'''",
            "r'\\'; import a'",
            "# import a",
            "x = (\nimport_a)",
            "raise E from a",
            "yield from a",
            "importa = 1",
            "f(\n'import a', \"\"\"\nfrom a import b\"\"\")",
            "f'{x}\\'; import a'",
            "f'''{\nx\n}\nimport a'''",
            "x.import_ = 1",
            "from a",
            "import",
            "from . import",
            "import 1",
        ] {
            assert!(
                found(source).iter().all(|import| import == ".:" || import == "."),
                "{source:?}: {:?}",
                found(source)
            );
        }
    }

    #[test]
    fn source_encodings_are_detected_like_in_python() {
        for (source, expected) in [
            (&b"# -*- coding: latin-1 -*-\n"[..], Some("latin-1")),
            (b"#!/usr/bin/python\n# vim: set fileencoding=Shift_JIS :\n", Some("shift-jis")),
            (b"x = 1\n# coding: utf-8\n", Some("utf-8")),
            (b"\n\n# coding: latin-1\n", None),
            (b"coding = 1\n", None),
        ] {
            assert_eq!(declared_encoding(source).as_deref(), expected);
        }
        // The second byte of this character is a backslash.
        let source = b"# coding: shift_jis\nx = '\x95\\'\nimport a\n";
        assert_eq!(imports(source).len(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(source in proptest::collection::vec(proptest::sample::select(b"import from.(){}[]'\"#f\\\n\r;:,*a \xe9{N".to_vec()), 0..80), pairs: bool) {
            let head: &[u8] = if pairs { b"# coding: gbk\n" } else { b"" };
            let _ = imports(&[head, &source].concat());
        }
    }
}
