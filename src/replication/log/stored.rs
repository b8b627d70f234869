//! A log entry as bytes: the same on disk and between nodes, behind the same checksum.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use serde::{Deserialize, Serialize};

use crate::replication::entry::Batch;
use crate::replication::record::{self, Kind, RecordError};
use crate::replication::types::{Entry, Position, Roster, RosterError};

const VERSION: u8 = 1;

/// What stands in front of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// What this node knew to be committed when it wrote the entry.
    pub(crate) committed: Option<Position>,
    pub(crate) position: Position,
    payload: Payload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Payload {
    /// What a new leader begins its term with.
    Blank,
    Batch,
    Roster,
}

/// Why bytes are not a log entry.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// Appends the entry to `buffer` as one sealed record.
pub(crate) fn write(
    entry: &Entry,
    committed: Option<Position>,
    buffer: &mut Vec<u8>,
) -> Result<(), StoredError> {
    let start = record::begin(buffer);
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(_) => Payload::Batch,
        EntryPayload::Membership(_) => Payload::Roster,
    };
    record::encode_into(&Header { committed, position: entry.log_id().into(), payload }, buffer)?;
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Normal(batch) => buffer.extend_from_slice(batch.as_bytes()),
        EntryPayload::Membership(membership) => record::encode_into(&Roster::from(membership), buffer)?,
    }
    record::seal(buffer, start, Kind::Entry, VERSION);
    Ok(())
}

/// About how many bytes [`write()`] makes of it.
pub(crate) fn bytes(entry: &Entry) -> usize {
    const HEADER_BYTES_MAX: usize = 96;
    match &entry.payload {
        EntryPayload::Blank => HEADER_BYTES_MAX,
        EntryPayload::Normal(batch) => HEADER_BYTES_MAX + batch.as_bytes().len(),
        EntryPayload::Membership(membership) => HEADER_BYTES_MAX * (1 + membership.nodes().count()),
    }
}

/// Reads a sealed record. The entry's batch keeps a reference to the bytes instead of a copy.
pub(crate) fn read(bytes: &Bytes) -> Result<(Header, Entry), StoredError> {
    let body = record::open(bytes, Kind::Entry, VERSION)?;
    let (header, used) = record::decode_front::<Header>(body)?;
    let payload = match header.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Batch => EntryPayload::Normal(Batch::from_bytes(bytes.slice_ref(&body[used..]))),
        Payload::Roster => {
            let roster: Roster = record::decode(&body[used..])?;
            EntryPayload::Membership(roster.into_membership()?)
        }
    };
    Ok((header, Entry::new(header.position.into(), payload)))
}
