//! Reads JSON once from its beginning to its end, and refuses with its place what two readers could understand differently.
//!
//! The one grammar of the project: `canonical.rs` has it write the canonical text as it goes, and a reader of strange JSON
//! has it look only. A member that appears twice, nesting that is too deep and a string that is none are refused here; what
//! a number may be worth is said by where it is written to. The work grows with the length of the text alone.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::canonical::CanonicalError;

/// So many members of one object are compared one by one.
const FEW_MEMBERS: usize = 16;
/// Of a name in an error, as much as a person reads: it may be as long as the text.
const SHORT: usize = 60;

/// Where what is read is written to.
pub(crate) trait Out {
    /// How much was written.
    fn at(&self) -> usize;
    /// A sign or a word, as it stands.
    fn plain(&mut self, text: &str);
    /// A string; a borrowed one stands in the text as it is written.
    fn string(&mut self, string: &Cow<'_, str>);
    /// A number, or why it is none.
    fn number(&mut self, literal: &str) -> Result<(), String>;
    /// Puts the members of an object, which begins at `start` and is not closed, into the order of their names.
    fn sort(&mut self, start: usize, members: &[Member<'_>]);
}

/// A member of an object: its name, and where it was written.
pub(crate) struct Member<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) from: usize,
}

/// As much of a text as an error shows.
pub(crate) fn short(text: &str) -> String {
    let mut short: String = text.chars().take(SHORT).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

enum Step<'a> {
    Member(Cow<'a, str>),
    Item(usize),
}

pub(crate) struct Scanner<'a, O> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Where to stop, to know the place.
    until: usize,
    path: Vec<Step<'a>>,
    pub(crate) out: O,
}

impl<'a, O: Out> Scanner<'a, O> {
    pub(crate) fn new(text: &'a str, depth: usize, out: O) -> Self {
        Self { text, at: 0, depth, until: usize::MAX, path: Vec::new(), out }
    }

    /// Stops at this byte, with an error that has the place in its path.
    pub(crate) fn until(self, until: usize) -> Self {
        Self { until, ..self }
    }

    /// The whole text: one value, and nothing behind it.
    pub(crate) fn whole(mut self) -> Result<O, CanonicalError> {
        self.space();
        self.value()?;
        self.space();
        if self.at < self.text.len() {
            return Err(self.wrong("more text after the value"));
        }
        Ok(self.out)
    }

    fn wrong(&self, what: impl Into<String>) -> CanonicalError {
        let mut path = String::from("$");
        for step in &self.path {
            match step {
                Step::Member(name) => {
                    path.push('.');
                    path.push_str(&short(name));
                }
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        CanonicalError { path, what: what.into(), offset: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self) -> CanonicalError {
        match self.text[self.at..].chars().next() {
            Some(c) => self.wrong(format!("unexpected {c:?}")),
            None => self.wrong("the text ends too early"),
        }
    }

    fn passed(&self) -> Result<(), CanonicalError> {
        if self.at >= self.until { Err(self.wrong("")) } else { Ok(()) }
    }

    fn value(&mut self) -> Result<(), CanonicalError> {
        // Whoever asks for the place may have stood before a value that it did not want at all.
        self.passed()?;
        match self.peek() {
            Some(b'{') => self.object()?,
            Some(b'[') => self.array()?,
            Some(b'"') => {
                let string = self.string()?;
                self.out.string(&string);
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        }
        self.passed()
    }

    fn word(&mut self) -> Result<(), CanonicalError> {
        let Some(word) = ["true", "false", "null"].into_iter().find(|word| self.text[self.at..].starts_with(word))
        else {
            return Err(self.unexpected());
        };
        self.at += word.len();
        self.out.plain(word);
        Ok(())
    }

    fn enter(&mut self, step: Step<'a>) -> Result<(), CanonicalError> {
        if self.path.len() >= self.depth {
            return Err(self.wrong(format!("nested deeper than {} levels", self.depth)));
        }
        self.path.push(step);
        Ok(())
    }

    fn array(&mut self) -> Result<(), CanonicalError> {
        self.at += 1;
        self.out.plain("[");
        self.space();
        if self.eat(b']') {
            self.out.plain("]");
            return Ok(());
        }
        for index in 0.. {
            self.enter(Step::Item(index))?;
            self.space();
            self.value()?;
            self.path.pop();
            self.space();
            if self.eat(b']') {
                break;
            }
            if !self.eat(b',') {
                return Err(self.unexpected());
            }
            self.out.plain(",");
        }
        self.out.plain("]");
        Ok(())
    }

    /// Writes the members as they come, which is their order where a program wrote them sorted; else puts them in order after.
    fn object(&mut self) -> Result<(), CanonicalError> {
        self.at += 1;
        let start = self.out.at();
        self.out.plain("{");
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut sorted = true;
        // Of a few members each is compared with each; of very many, that would be work for an attacker to order.
        let mut many: HashSet<Cow<'a, str>> = HashSet::new();
        self.space();
        if !self.eat(b'}') {
            loop {
                self.space();
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected());
                }
                let name = self.string()?;
                self.enter(Step::Member(name.clone()))?;
                // A name behind all others is none of them.
                sorted = sorted && members.last().is_none_or(|last| last.name < name);
                if !sorted && is_known(&members, &mut many, &name) {
                    return Err(self.wrong(format!("member {:?} appears twice", short(&name))));
                }
                self.passed()?;
                self.space();
                if !self.eat(b':') {
                    return Err(self.unexpected());
                }
                self.space();
                if !members.is_empty() {
                    self.out.plain(",");
                }
                let from = self.out.at();
                self.out.string(&name);
                self.out.plain(":");
                members.push(Member { name, from });
                self.value()?;
                self.path.pop();
                self.space();
                if self.eat(b'}') {
                    break;
                }
                if !self.eat(b',') {
                    return Err(self.unexpected());
                }
            }
        }
        if !sorted {
            self.out.sort(start, &members);
        }
        self.out.plain("}");
        Ok(())
    }

    /// Reads a string by serde's rules for escapes; finds its end by ours. A borrowed one is written as it stands.
    fn string(&mut self) -> Result<Cow<'a, str>, CanonicalError> {
        let start = self.at;
        self.at += 1;
        let mut plain = true;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let Some(next) = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ') else {
                self.at = self.text.len();
                return Err(self.wrong("a string is not closed"));
            };
            self.at += next;
            match rest[next] {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
            plain = false;
        }
        self.at += 1;
        let literal = &self.text[start..self.at];
        if plain {
            // Nothing to decode and nothing that JSON forbids in a string: most strings.
            return Ok(Cow::Borrowed(&literal[1..literal.len() - 1]));
        }
        serde_json::from_str(literal).map(Cow::Owned).map_err(|e| {
            self.at = start;
            self.wrong(format!("not a string: {e}"))
        })
    }

    fn number(&mut self) -> Result<(), CanonicalError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let literal = &self.text[start..self.at];
        self.out.number(literal).map_err(|what| {
            self.at = start;
            self.wrong(what)
        })
    }
}

/// Whether an object has a member of the name already.
fn is_known<'a>(members: &[Member<'a>], many: &mut HashSet<Cow<'a, str>>, name: &Cow<'a, str>) -> bool {
    if members.len() < FEW_MEMBERS {
        return members.iter().any(|known| known.name == *name);
    }
    if many.is_empty() {
        many.extend(members.iter().map(|known| known.name.clone()));
    }
    !many.insert(name.clone())
}
