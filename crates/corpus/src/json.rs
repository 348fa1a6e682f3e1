//! Reads `.json` files: an array of objects, one object that holds such an array, JSON Lines, or objects that follow
//! each other. The content decides.

use std::{
    io::{self, BufRead},
    iter,
};

use crate::{
    CorpusError,
    raw::{Content, Input, More, Raw, Raws, only, read_lines},
};

/// Maximum bytes of a key that names an array of records.
const LONGEST_KEY: u64 = 1 << 10;
/// Maximum number of arrays that an error names.
const NAMED: usize = 4;
/// An object with only this array is a conversation, not a file of records.
const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];

/// How a file holds its objects.
#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// One object per line.
    Lines,
    /// One object after the other, over several lines.
    Objects,
    /// The elements of an array.
    Array,
    /// The elements of an array in an object, under this key.
    Within(String),
    /// Several arrays could be the records.
    Ambiguous(Vec<String>),
}

/// Reads the records of a `.json` file.
pub(crate) fn read(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    // The second reading counts.
    let first = Input {
        passed: None,
        ..input
    };
    let mut scanner = match first.open_unmarked()?.map(Scanner::new) {
        Ok(scanner) => scanner,
        Err(record) => return Ok(only(Ok(record))),
    };
    let layout = match scanner.layout() {
        Ok(layout) => layout,
        Err(error) => return Ok(only(input.broken(1, error))),
    };
    let is_array = layout != Layout::Objects;
    let key = match layout {
        Layout::Lines => return read_lines(input),
        Layout::Ambiguous(keys) => {
            let reason = format!(
                "an object with several arrays of objects (`{}`): expected one",
                keys.join("`, `")
            );
            return Ok(only(Ok(Raw::damage(1, reason))));
        }
        Layout::Within(key) => Some(key),
        Layout::Array | Layout::Objects => None,
    };
    let mut scanner = match input.open_unmarked()?.map(Scanner::new) {
        Ok(scanner) => scanner,
        Err(record) => return Ok(only(Ok(record))),
    };
    if let Err(error) = scanner.enter(key.as_deref(), is_array) {
        return Ok(only(input.broken(1, error)));
    }
    let longest = input.longest_record();
    let mut lines = 1..;
    Ok(Box::new(iter::from_fn(move || {
        let line = lines.next()?;
        let element = if is_array {
            scanner.element(line > 1, key.is_none(), longest)
        } else {
            scanner.object(longest)
        };
        let content = match element {
            Err(error) => return Some(input.broken(line, error)),
            Ok(Element::End) => return None,
            Ok(Element::Damage(reason)) => return Some(Ok(Raw::damage(line, reason))),
            Ok(Element::One(content)) => content,
        };
        let more = input.left(scanner.consumed);
        let more = more.map_or(More::Unknown, More::Bytes);
        Some(Ok(Raw::new(line, content, more)))
    })))
}

/// The next element of a file.
enum Element {
    One(Content),
    Damage(String),
    End,
}

/// How a value ended.
enum Scanned {
    Whole { bytes: u64 },
    Cut,
}

/// Finds where JSON values begin and end, without parsing them.
struct Scanner<R> {
    reader: R,
    consumed: u64,
    /// Line breaks consumed.
    breaks: u64,
}

impl<R: BufRead> Scanner<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            consumed: 0,
            breaks: 0,
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.consumed += bytes as u64;
    }

    /// Skips white space. Returns the next byte without consuming it; `None` at the end of the file.
    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace());
            let (mut length, mut breaks) = (0, 0);
            for byte in blank {
                length += 1;
                breaks += u64::from(*byte == b'\n');
            }
            let next = buffer.get(length).copied();
            let at_end = buffer.is_empty();
            self.breaks += breaks;
            self.consume(length);
            if next.is_some() || at_end {
                return Ok(next);
            }
        }
    }

    /// Skips white space and then `expected`. Returns whether it was there.
    fn skip(&mut self, expected: u8) -> io::Result<bool> {
        let found = self.peek()? == Some(expected);
        if found {
            self.consume(1);
        }
        Ok(found)
    }

    /// Consumes a value, or its rest if `depth` brackets are open already. Keeps at most `longest` bytes of it.
    fn value(&mut self, mut depth: usize, longest: u64, kept: &mut Vec<u8>) -> io::Result<Scanned> {
        let (mut in_string, mut escaped, mut total) = (false, false, 0_u64);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                let is_scalar = depth == 0 && !in_string && total > 0;
                return Ok(if is_scalar {
                    Scanned::Whole { bytes: total }
                } else {
                    Scanned::Cut
                });
            }
            let mut end = None;
            for (place, &byte) in buffer.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => {
                            in_string = false;
                            if depth == 0 {
                                end = Some(place + 1);
                                break;
                            }
                        }
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b',' | b':' | b'}' | b']' if depth == 0 => end = Some(place),
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            end = Some(place + 1);
                        }
                    }
                    _ if depth == 0 && byte.is_ascii_whitespace() => end = Some(place),
                    _ => {}
                }
                if end.is_some() {
                    break;
                }
            }
            let used = end.unwrap_or(buffer.len());
            let room = longest.saturating_sub(kept.len() as u64);
            kept.extend_from_slice(&buffer[..used.min(usize::try_from(room).unwrap_or(used))]);
            let breaks = buffer[..used].iter().filter(|byte| **byte == b'\n').count();
            self.breaks += breaks as u64;
            total += used as u64;
            self.consume(used);
            if end.is_some() {
                return Ok(Scanned::Whole { bytes: total });
            }
        }
    }

    /// Reads a key and the colon after it; `None` if there is no key.
    fn key(&mut self) -> io::Result<Option<String>> {
        if self.peek()? != Some(b'"') {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        if matches!(self.value(0, LONGEST_KEY, &mut bytes)?, Scanned::Cut) || !self.skip(b':')? {
            return Ok(None);
        }
        // A key over the limit is cut, and names no records.
        Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// Decides the layout by the first object of the file. A file without JSON is read line by line, so
    /// that each line gets an error of its own.
    fn layout(&mut self) -> io::Result<Layout> {
        match self.peek()? {
            Some(b'[') => return Ok(Layout::Array),
            Some(b'{') => {}
            _ => return Ok(Layout::Lines),
        }
        self.consume(1);
        let start = self.breaks;
        let mut arrays = Vec::new();
        while !self.skip(b'}')? {
            let Some(key) = self.key()? else {
                return Ok(Layout::Lines);
            };
            let mut depth = 0;
            if self.skip(b'[')? {
                depth = 1;
                if self.peek()? == Some(b'{') && arrays.len() < NAMED {
                    arrays.push(key);
                }
            }
            let value = self.value(depth, 0, &mut Vec::new())?;
            let goes_on = self.skip(b',')? || self.peek()? == Some(b'}');
            if matches!(value, Scanned::Cut) || !goes_on {
                return Ok(Layout::Lines);
            }
        }
        let on_one_line = self.breaks == start;
        let is_alone = self.peek()?.is_none();
        Ok(match (is_alone, arrays.len()) {
            (false, _) if on_one_line => Layout::Lines,
            (true, 2..) => Layout::Ambiguous(arrays),
            (true, 1) if !CONVERSATIONS.contains(&&*arrays[0]) => Layout::Within(arrays.remove(0)),
            _ => Layout::Objects,
        })
    }

    /// Goes to the first element of the array, after its opening bracket.
    fn enter(&mut self, key: Option<&str>, is_array: bool) -> io::Result<()> {
        if let Some(wanted) = key {
            self.skip(b'{')?;
            while let Some(key) = self.key()? {
                if key == wanted && self.peek()? == Some(b'[') {
                    break;
                }
                self.value(0, 0, &mut Vec::new())?;
                self.skip(b',')?;
            }
        }
        if is_array {
            self.skip(b'[')?;
        }
        Ok(())
    }

    /// The next element of an array. `ends_file`: whether only white space may follow the array.
    fn element(&mut self, is_later: bool, ends_file: bool, longest: u64) -> io::Result<Element> {
        let has_comma = is_later && self.skip(b',')?;
        Ok(match self.peek()? {
            Some(b']') => {
                self.consume(1);
                match self.peek()? {
                    Some(_) if ends_file => {
                        Element::Damage("text follows the end of the array".to_owned())
                    }
                    _ => Element::End,
                }
            }
            Some(_) if is_later && !has_comma => {
                Element::Damage("not JSON: expected `,` or `]` after an element".to_owned())
            }
            Some(_) => self.one(longest)?,
            None => Element::Damage("the file is cut here: its array does not end".to_owned()),
        })
    }

    /// The next of the objects that follow each other.
    fn object(&mut self, longest: u64) -> io::Result<Element> {
        match self.peek()? {
            None => Ok(Element::End),
            Some(b'{') => self.one(longest),
            Some(_) => Ok(Element::Damage(
                "not JSON: expected `{` after an object".to_owned(),
            )),
        }
    }

    fn one(&mut self, longest: u64) -> io::Result<Element> {
        let mut kept = Vec::new();
        Ok(match self.value(0, longest, &mut kept)? {
            Scanned::Cut => {
                Element::Damage("the file is cut here: a record does not end".to_owned())
            }
            Scanned::Whole { bytes } if bytes > longest => Element::One(Content::TooLong),
            Scanned::Whole { .. } => Element::One(Content::Json(kept)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(text: &str) -> Layout {
        // One byte at a time, so that values cross the reader's buffers.
        let reader = io::BufReader::with_capacity(1, text.as_bytes());
        Scanner::new(reader).layout().unwrap()
    }

    #[test]
    fn the_content_decides_the_layout() {
        use Layout::{Ambiguous, Array, Lines, Objects, Within};
        let named = |keys: &[&str]| Ambiguous(keys.iter().map(|key| (*key).to_owned()).collect());
        for (text, expected) in [
            (" \n[{\"a\": 1}]", Array),
            ("{\"a\": 1}\n{\"a\": 2}\n", Lines),
            ("{\"a\": [{}]}\n{\"a\": [{}]}\n", Lines),
            ("{\n\"a\": 1}\n{\"a\": 2}\n", Objects),
            ("{\"a\": 1}", Objects),
            (
                "{\"v\": \"1\", \"data\": [{\"a\": [1, \"]\"]}], \"n\": [1]}",
                Within("data".to_owned()),
            ),
            ("{\"messages\": [{\"role\": \"user\"}]}", Objects),
            ("{\"a\": [{}], \"b\": [ {}]}", named(&["a", "b"])),
            ("{\"a\": [{}", Lines),
            ("{\"a\" 1}\n{\"a\": 2}", Lines),
            ("hello", Lines),
            ("", Lines),
        ] {
            assert_eq!(layout(text), expected, "{text}");
        }
    }
}
