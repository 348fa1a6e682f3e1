//! Defines the bytes of segments and indices. All numbers are little-endian.
//!
//! Both files start with [`header`]. A segment continues with labels, without anything between them. An index continues
//! with records of [`RECORD`] bytes: the sequence's id (32 bytes), the label's offset and length (8 and 8), the label's
//! checksum (8), and the checksum of these 56 bytes (8).

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

/// A sequence's id.
pub(crate) type Id = [u8; 32];

pub(crate) const VERSION: u32 = 1;
pub(crate) const RECORD: usize = 64;

/// How much of a label to read before hashing it: small enough to stay in the core's cache.
const CHUNK: usize = 1 << 17;

/// Where a label is. Small, because an index in memory has one of these per label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) offset: u64,
    pub(crate) checksum: u64,
    pub(crate) length: u32,
    /// The segment's number in this process.
    pub(crate) segment: u32,
}

/// The first bytes of a segment or index, as long as a record.
pub(crate) fn header() -> [u8; RECORD] {
    let mut header = [0; RECORD];
    header[..12].copy_from_slice(b"DDK labels\r\n");
    header[12..16].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// 64 bits of BLAKE3 miss a random error once in 2^64.
fn first_bits(hash: &blake3::Hasher) -> u64 {
    let mut bits = [0; 8];
    bits.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bits)
}

/// A label's checksum, which covers the sequence's id.
pub(crate) fn checksum(id: &Id, label: &[u8]) -> u64 {
    first_bits(blake3::Hasher::new().update(id).update(label))
}

pub(crate) fn encode(id: &Id, location: &Location) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..32].copy_from_slice(id);
    record[32..40].copy_from_slice(&location.offset.to_le_bytes());
    record[40..48].copy_from_slice(&u64::from(location.length).to_le_bytes());
    record[48..56].copy_from_slice(&location.checksum.to_le_bytes());
    let check = first_bits(blake3::Hasher::new().update(&record[..56]));
    record[56..].copy_from_slice(&check.to_le_bytes());
    record
}

/// Returns `None` if the record is damaged.
pub(crate) fn decode(record: &[u8; RECORD], segment: u32) -> Option<(Id, Location)> {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&record[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let mut id = [0; 32];
    id.copy_from_slice(&record[..32]);
    let location = Location {
        offset: number(32),
        checksum: number(48),
        length: u32::try_from(number(40)).ok()?,
        segment,
    };
    (encode(&id, &location) == *record).then_some((id, location))
}

/// Reads and verifies a label.
pub(crate) fn read(file: &File, id: &Id, location: &Location) -> io::Result<Vec<u8>> {
    let length = location.length as usize;
    let mut label = Vec::with_capacity(length);
    let mut hash = blake3::Hasher::new();
    hash.update(id);
    while label.len() < length {
        let start = label.len();
        label.resize(length.min(start + CHUNK), 0);
        file.read_exact_at(&mut label[start..], location.offset + start as u64)?;
        hash.update(&label[start..]);
    }
    if first_bits(&hash) != location.checksum {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "the checksum differs",
        ));
    }
    Ok(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_flipped_bit_is_refused() {
        let location = Location {
            offset: 1 << 29,
            checksum: checksum(&[1; 32], b"label"),
            length: 5,
            segment: 3,
        };
        let record = encode(&[1; 32], &location);
        assert_eq!(decode(&record, 3), Some(([1; 32], location)));
        for bit in 0..RECORD * 8 {
            let mut flipped = record;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, 3), None, "bit {bit}");
        }
    }
}
