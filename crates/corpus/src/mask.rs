//! Finds the tokens of the text that the loss leaves out.

use std::ops::Range;

use tokenizers::Encoding;

/// Returns the ranges of tokens outside the `learned` byte ranges of a text. A token belongs to a range if it holds a
/// character of it.
///
/// As in transformers, a range goes from the first token with its first character to the first token with its last
/// character. If no token has such a character (some tokenizers assign a space to no token), the nearest token inside
/// the range takes its place; transformers would leave out the rest of the mask.
pub(crate) fn masked(encoding: &Encoding, text: &str, learned: &[Range<usize>]) -> Vec<Range<u64>> {
    let offsets = encoding.get_offsets();
    let (mut masked, mut next) = (Vec::new(), 0_u64);
    // Counts characters up to a byte, going forward from the last one.
    let (mut bytes, mut letters) = (0, 0);
    let mut letters_before = |byte: usize| {
        letters += text.get(bytes..byte).map_or(0, |part| part.chars().count());
        bytes = byte;
        letters
    };
    for range in learned {
        let (start, end) = (letters_before(range.start), letters_before(range.end));
        let holds = |letter: usize| {
            offsets
                .iter()
                .position(|&(from, to)| (from..to).contains(&letter))
        };
        let first = holds(start).or_else(|| offsets.iter().position(|&(_, to)| to > start));
        let last = holds(end.saturating_sub(1))
            .or_else(|| offsets.iter().rposition(|&(from, _)| from < end));
        if let (Some(first), Some(last)) = (first, last)
            && first <= last
        {
            let first = (first as u64).max(next);
            if next < first {
                masked.push(next..first);
            }
            next = next.max(last as u64 + 1);
        }
    }
    let count = offsets.len() as u64;
    if next < count {
        masked.push(next..count);
    }
    masked
}
