//! The envelope around everything that is written to disk, and the encoding inside it.
//!
//! An envelope says what it holds (magic, kind, version), how long it is, and a CRC-32C over all of
//! that. A reader gets exactly what a writer sealed, or an error that says what is wrong: bytes that
//! were cut, flipped or meant for something else are never read as an older, shorter or empty value.
//!
//! Inside is bincode: little-endian, with a limit on what a decoder may allocate. Enum variants are
//! only ever appended; a version that this build does not know is an error, never skipped.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

/// `QRTE`, so that a file can be recognised.
const MAGIC: [u8; 4] = *b"QRTE";
/// Magic, kind, version, two bytes of zero, length of the body, CRC-32C of all the rest.
pub(crate) const HEADER_BYTES: usize = 16;
/// No single value is larger when it is encoded.
const ENCODED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What an encoded byte can stand for, in the bytes that the decoder counts: it counts a number by its width, however
/// short it is written, and the widest have 16.
const COUNTED_BYTES_A_BYTE: usize = 16;
/// An encoding of at most so many bytes is decoded within a bound of its own, so that the few bytes of most messages
/// never make room for many.
const SMALL_BYTES: usize = 64 * 1024;

type Bounded<const BYTES_MAX: usize> = Configuration<LittleEndian, Varint, Limit<BYTES_MAX>>;

/// A decoder refuses before it makes room for more than this.
const SMALL: Bounded<{ COUNTED_BYTES_A_BYTE * SMALL_BYTES }> = bincode::config::standard().with_limit();
const LARGE: Bounded<{ COUNTED_BYTES_A_BYTE * ENCODED_BYTES_MAX }> = bincode::config::standard().with_limit();

/// What an envelope holds. A number once given is never given to anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Identity = 1,
    Entry = 2,
    LogState = 3,
    Witness = 4,
    Chunk = 5,
    Manifest = 6,
    Acquaintances = 7,
    Journal = 8,
    Facts = 9,
    FactsContents = 10,
}

/// Why bytes are not the record that was expected.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("it is {actual} bytes long and needs {expected}")]
    Length { expected: usize, actual: usize },
    #[error("it does not begin with the mark of a record")]
    Magic,
    #[error("it is of kind {actual}, not {expected}")]
    Kind { expected: u8, actual: u8 },
    #[error("its version {actual} is not one that this build knows (up to {known})")]
    Version { known: u8, actual: u8 },
    #[error("its checksum is {actual:08x} where {expected:08x} was written")]
    Checksum { expected: u32, actual: u32 },
    #[error("its content cannot be decoded")]
    Decode(#[from] bincode::error::DecodeError),
    #[error("its content cannot be encoded")]
    Encode(#[from] bincode::error::EncodeError),
    #[error("it carries {0} bytes beyond its content")]
    Trailing(usize),
}

/// Begins a record in `buffer`: leaves room for the header. What is appended next is the body.
pub(crate) fn begin(buffer: &mut Vec<u8>) -> usize {
    let start = buffer.len();
    buffer.resize(start + HEADER_BYTES, 0);
    start
}

/// Seals the record that began at `start` and whose body ends with the buffer.
pub(crate) fn seal(buffer: &mut [u8], start: usize, kind: Kind, version: u8) {
    let body_bytes = (buffer.len() - start - HEADER_BYTES) as u32;
    let header = &mut buffer[start..start + HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = kind as u8;
    header[5] = version;
    header[8..12].copy_from_slice(&body_bytes.to_le_bytes());
    let checksum = checksum(&buffer[start..]);
    buffer[start + 12..start + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Over the whole record but the checksum itself.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..12]), &record[HEADER_BYTES..])
}

/// Encodes `value` and seals it.
pub(crate) fn write<T: Serialize>(kind: Kind, version: u8, value: &T) -> Result<Vec<u8>, RecordError> {
    let mut buffer = Vec::with_capacity(256);
    begin(&mut buffer);
    encode_into(value, &mut buffer)?;
    seal(&mut buffer, 0, kind, version);
    Ok(buffer)
}

/// The body of a whole record, if it is one of this kind and of a known version.
pub(crate) fn open(record: &[u8], kind: Kind, version_known: u8) -> Result<&[u8], RecordError> {
    if record.len() < HEADER_BYTES {
        return Err(RecordError::Length { expected: HEADER_BYTES, actual: record.len() });
    }
    if record[..4] != MAGIC {
        return Err(RecordError::Magic);
    }
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let expected_bytes = HEADER_BYTES + word(8) as usize;
    if record.len() != expected_bytes {
        return Err(RecordError::Length { expected: expected_bytes, actual: record.len() });
    }
    let (expected, actual) = (word(12), checksum(record));
    if expected != actual {
        return Err(RecordError::Checksum { expected, actual });
    }
    if record[4] != kind as u8 {
        return Err(RecordError::Kind { expected: kind as u8, actual: record[4] });
    }
    if record[5] == 0 || record[5] > version_known {
        return Err(RecordError::Version { known: version_known, actual: record[5] });
    }
    Ok(&record[HEADER_BYTES..])
}

/// The version that a record claims. Not checked otherwise.
pub(crate) fn version(record: &[u8]) -> Option<u8> {
    record.get(5).copied()
}

/// The record at the front of `bytes`, by the length that it claims. Not checked otherwise.
pub(crate) fn front(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.get(8..12)?;
    let body_bytes = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    bytes.get(..HEADER_BYTES.checked_add(body_bytes)?)
}

/// Opens and decodes a record that [`write()`] made.
pub(crate) fn read<T: DeserializeOwned>(
    record: &[u8],
    kind: Kind,
    version_known: u8,
) -> Result<T, RecordError> {
    decode(open(record, kind, version_known)?)
}

/// Whether `bytes` begin with the mark of a record. Not checked otherwise.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The same bytes as a record that ends where they do, whatever length it claims.
pub(crate) fn with_its_length(bytes: &[u8]) -> Vec<u8> {
    let mut record = bytes.to_vec();
    if let (Some(body_bytes), Some(length)) = (bytes.len().checked_sub(HEADER_BYTES), record.get_mut(8..12)) {
        length.copy_from_slice(&(body_bytes as u32).to_le_bytes());
    }
    record
}

/// Appends the encoding of `value`, without an envelope.
pub(crate) fn encode_into<T: Serialize>(value: &T, buffer: &mut Vec<u8>) -> Result<(), RecordError> {
    encode_to(value, buffer)
}

/// Writes the encoding of `value`, without an envelope.
pub(crate) fn encode_to<T: Serialize>(value: &T, sink: &mut impl std::io::Write) -> Result<(), RecordError> {
    bincode::serde::encode_into_std_write(value, sink, LARGE)?;
    Ok(())
}

/// The encoding of `value`, without an envelope.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, RecordError> {
    let mut buffer = Vec::with_capacity(128);
    encode_into(value, &mut buffer)?;
    Ok(buffer)
}

/// Decodes exactly one value that borrows from `bytes`.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, RecordError> {
    let (value, used) = decode_front(bytes)?;
    if used != bytes.len() {
        return Err(RecordError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

/// Decodes a value from the front of `bytes`; returns it and how many bytes it took.
pub(crate) fn decode_front<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, usize), RecordError> {
    match bytes.len() {
        ..=SMALL_BYTES => Ok(bincode::serde::borrow_decode_from_slice(bytes, SMALL)?),
        ..=ENCODED_BYTES_MAX => Ok(bincode::serde::borrow_decode_from_slice(bytes, LARGE)?),
        actual => Err(RecordError::Length { expected: ENCODED_BYTES_MAX, actual }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let record = write(Kind::Identity, 1, &("name", 7u64)).expect("it encodes");
        let (name, number): (String, u64) = read(&record, Kind::Identity, 1).expect("it reads");
        assert_eq!((name.as_str(), number), ("name", 7));
    }

    #[test]
    fn decodes_whatever_it_encoded_however_short_the_numbers_are() {
        for count in [SMALL_BYTES - 10, SMALL_BYTES + 10, 12_000_000] {
            let numbers = vec![1u64; count];
            let encoded = encode(&numbers).expect("it encodes");
            assert!(decode::<Vec<u64>>(&encoded).expect("it decodes") == numbers, "{count} numbers");
        }
    }

    #[test]
    fn a_length_that_is_only_claimed_makes_no_room() {
        // A text of 2 MiB, of which three bytes are there.
        let claimed = [&[252, 0, 0, 32, 0][..], b"abc"].concat();
        let refused = decode::<String>(&claimed).expect_err("it is cut");
        assert!(
            matches!(refused, RecordError::Decode(bincode::error::DecodeError::LimitExceeded)),
            "{refused:?}"
        );
    }

    #[test]
    fn refuses_every_single_flipped_bit_and_every_cut() {
        let record = write(Kind::Identity, 1, &("name", 7u64)).expect("it encodes");
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read::<(String, u64)>(&damaged, Kind::Identity, 1).is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(read::<(String, u64)>(&record[..length], Kind::Identity, 1).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn refuses_another_kind_and_a_newer_version() {
        let record = write(Kind::Identity, 2, &1u8).expect("it encodes");
        assert!(matches!(open(&record, Kind::Entry, 2), Err(RecordError::Kind { .. })));
        assert!(matches!(open(&record, Kind::Identity, 1), Err(RecordError::Version { .. })));
    }
}
