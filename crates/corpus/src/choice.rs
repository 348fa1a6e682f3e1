//! Decides how to use each document that the first reading found.

use crate::{
    CorpusError, DomainSource, PrepareOptions, ValidationSplit,
    source::Use,
    spool::{Entries, Entry},
};

/// The use of each document in reading order, in two bits.
pub(crate) struct Uses {
    bits: Vec<u8>,
    pub(crate) documents: u64,
}

/// Uses per byte.
const PER_BYTE: u64 = 4;

impl Uses {
    /// Starts with documents that are not used.
    fn nothing(documents: u64) -> Self {
        Self {
            bits: vec![0; documents.div_ceil(PER_BYTE) as usize],
            documents,
        }
    }

    /// Sets the use of a document that is not used yet.
    fn set(&mut self, document: u64, usage: Use) {
        let bits = match usage {
            Use::Nothing => 0,
            Use::Train => 1,
            Use::Validation => 2,
        };
        self.bits[(document / PER_BYTE) as usize] |= bits << (2 * (document % PER_BYTE));
    }

    pub(crate) fn get(&self, document: u64) -> Use {
        match self.bits[(document / PER_BYTE) as usize] >> (2 * (document % PER_BYTE)) & 3 {
            0 => Use::Nothing,
            1 => Use::Train,
            _ => Use::Validation,
        }
    }

    /// Number of documents up to the last one whose use is `wanted`.
    pub(crate) fn end_of(&self, wanted: impl Fn(Use) -> bool) -> u64 {
        let last = (0..self.documents).rfind(|document| wanted(self.get(*document)));
        last.map_or(0, |last| last + 1)
    }
}

/// What was decided.
pub(crate) struct Choice {
    pub(crate) uses: Uses,
    pub(crate) duplicates: u64,
    /// Number of documents set aside for validation beyond those that it uses.
    pub(crate) spare: u64,
    /// Number of documents to train on, before a limit on tokens.
    pub(crate) train: u64,
    pub(crate) validation: u64,
    /// Bytes of all documents that are used.
    pub(crate) bytes: u64,
}

impl Choice {
    fn take(&mut self, entry: Entry, usage: Use) {
        match usage {
            Use::Train => self.train += 1,
            Use::Validation => self.validation += 1,
            Use::Nothing => return,
        }
        self.uses.set(entry.number, usage);
        self.bytes += u64::from(entry.bytes);
    }
}

/// The documents to choose from.
pub(crate) struct Candidates {
    /// With their hashes as keys.
    pub(crate) entries: Entries,
    /// Number of documents, including short ones.
    pub(crate) documents: u64,
    /// Number of documents from validation files, which come first.
    pub(crate) from_validation_files: u64,
}

/// Leaves out duplicates. Then sets documents aside for validation by the hash of their content alone, so that the same
/// text is never on both sides. Then takes training documents up to the limits, in an order drawn from the seed and the
/// content. `rest`: holds entries meanwhile, if there are limits.
pub(crate) fn choose(
    options: &PrepareOptions,
    domain: &DomainSource,
    candidates: Candidates,
    mut rest: Entries,
) -> Result<Choice, CorpusError> {
    let mut choice = Choice {
        uses: Uses::nothing(candidates.documents),
        duplicates: 0,
        spare: 0,
        train: 0,
        validation: 0,
        bytes: 0,
    };
    let own_files = !domain.validation_files.is_empty();
    let by_count = !own_files && options.validation_split == ValidationSplit::Count;
    // A hash as a number in [0, 1).
    let place = |hash| (u128::from_be_bytes(hash) >> 64) as f64 / 2_f64.powi(64);
    let (mut last, mut rank) = (None, 0);
    candidates.entries.in_order(|entry| {
        // Validation files are read first, so DDK never trains on a text that they contain.
        if last.replace(entry.key) == Some(entry.key) {
            choice.duplicates += 1;
            return Ok(());
        }
        let is_candidate = entry.number < candidates.from_validation_files
            || by_count
            || (!own_files && place(entry.key) < options.validation_fraction);
        rank += usize::from(is_candidate);
        if is_candidate && rank <= options.validation_documents {
            choice.take(entry, Use::Validation);
        } else if is_candidate && !by_count {
            // With `Count`, documents that validation does not need are trained on.
            choice.spare += 1;
        } else if domain.limits.chooses() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&options.seed.to_le_bytes());
            hasher.update(&entry.key);
            let mut key = [0; 16];
            key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
            rest.push(Entry { key, ..entry })?;
        } else {
            choice.take(entry, Use::Train);
        }
        Ok(())
    })?;
    let (mut bytes, mut count) = (0, 0);
    rest.in_order(|entry| {
        let more = bytes + u64::from(entry.bytes);
        let fits = domain.limits.bytes.is_none_or(|most| more <= most)
            && domain.limits.documents.is_none_or(|most| count < most);
        if fits {
            (bytes, count) = (more, count + 1);
            choice.take(entry, Use::Train);
        }
        Ok(())
    })?;
    Ok(choice)
}
