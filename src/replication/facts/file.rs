//! One file of blocks, and what can be known of it after any kind of end.
//!
//! A file is only appended to, and never again after the process that made it has ended or it is full.
//! Then everything in it is made durable, and its *contents* are written beside it: which block is
//! where. They save reading all of it at the next open. Where they are missing, the file is read through.
//!
//! What must hold: contents list only blocks that were durable when they were written. Every block
//! is checked whole before anything of it is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::replication::error::StorageError;
use crate::replication::facts::block::Block;
use crate::replication::facts::extent::Serial;
use crate::replication::record::{self, Kind};
use crate::replication::small_file::sync_directory;

const CONTENTS_VERSION: u8 = 1;
const BLOCKS_SUFFIX: &str = "blocks";
const CONTENTS_SUFFIX: &str = "contents";

/// Where one block is in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) range: Range<u64>,
    offset: u64,
    bytes: u64,
}

impl Place {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The blocks of one file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub(crate) places: Vec<Place>,
    /// The length of the file.
    pub(crate) bytes: u64,
}

impl Contents {
    /// The block that `index` is in.
    pub(crate) fn at(&self, index: u64) -> Option<&Place> {
        let after = self.places.partition_point(|place| place.range.start <= index);
        self.places[..after].last().filter(|place| index < place.range.end)
    }

    fn first(&self) -> Option<u64> {
        self.places.first().map(|place| place.range.start)
    }

    /// The index after the last entry that it covers.
    fn end(&self) -> Option<u64> {
        self.places.last().map(|place| place.range.end)
    }

    /// The ranges that it covers, as few as can be.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for Place { range, .. } in &self.places {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range.clone()),
            }
        }
        ranges
    }
}

/// What was read, or that it is not what was written.
pub(crate) enum Read {
    Block(Block),
    Damaged(StorageError),
}

/// Something that a file had, or was being given, and that cannot be read.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) path: PathBuf,
    /// The first entry of it; not known where it is what the file begins with.
    pub(crate) first: Option<u64>,
    pub(crate) loss: Loss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// There is a table of contents, and no file.
    Gone,
    /// The file is shorter than its table of contents says.
    Cut,
    /// A block is whole by its length, and is not what was written.
    Damaged,
    /// The file ends before its last block does, as a kill in the middle of a write leaves it, or a copy made
    /// meanwhile.
    Unfinished,
}

/// A file that is being written.
pub(crate) struct Appender {
    directory: PathBuf,
    pub(crate) serial: Serial,
    path: PathBuf,
    file: File,
    contents: Contents,
    synced_bytes: u64,
}

fn path_of(directory: &Path, serial: Serial, suffix: &str) -> PathBuf {
    directory.join(format!("{serial:012}.{suffix}"))
}

impl Appender {
    pub(crate) fn create(directory: &Path, serial: Serial) -> Result<Self, StorageError> {
        let path = path_of(directory, serial, BLOCKS_SUFFIX);
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(|source| StorageError::io("create", &path, source))?;
        // Its name is durable before anybody may rely on what is in it.
        sync_directory(directory)?;
        let directory = directory.to_owned();
        Ok(Appender { directory, serial, path, file, contents: Contents::default(), synced_bytes: 0 })
    }

    /// Whether `block` goes on where this file ends.
    pub(crate) fn precedes(&self, block: &Block) -> bool {
        self.contents.places.last().is_none_or(|last| last.range.end == block.range.start)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.contents.bytes
    }

    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.contents.bytes - self.synced_bytes
    }

    /// Writes a block. On return it can be read, and is not durable.
    pub(crate) fn append(&mut self, block: &Block) -> Result<Place, StorageError> {
        let record = block.seal();
        self.file.write_all(&record).map_err(|source| StorageError::io("write", &self.path, source))?;
        let place =
            Place { range: block.range.clone(), offset: self.contents.bytes, bytes: record.len() as u64 };
        self.contents.bytes += place.bytes;
        self.contents.places.push(place.clone());
        Ok(place)
    }

    /// Makes durable what was appended.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        if self.unsynced_bytes() > 0 {
            self.file.sync_data().map_err(|source| StorageError::io("sync", &self.path, source))?;
            self.synced_bytes = self.contents.bytes;
        }
        Ok(())
    }

    /// Ends the file. Durable on return.
    pub(crate) fn finish(mut self) -> Result<(), StorageError> {
        self.sync()?;
        write_contents(&self.directory, self.serial, &self.contents)
    }
}

/// Written whole or not at all, as far as a reader can tell; nobody waits for it to be durable.
fn write_contents(directory: &Path, serial: Serial, contents: &Contents) -> Result<(), StorageError> {
    let path = path_of(directory, serial, CONTENTS_SUFFIX);
    let record = record::write(Kind::FactsContents, CONTENTS_VERSION, contents)
        .map_err(|source| StorageError::damaged(&path, "a new table of contents", source))?;
    fs::write(&path, record).map_err(|source| StorageError::io("write", &path, source))
}

/// The files that are there, oldest first.
pub(crate) fn list(directory: &Path) -> Result<Vec<Serial>, StorageError> {
    list_with(directory, BLOCKS_SUFFIX)
}

fn list_with(directory: &Path, wanted: &str) -> Result<Vec<Serial>, StorageError> {
    let fail = |source| StorageError::io("list", directory, source);
    let mut serials = Vec::new();
    for item in fs::read_dir(directory).map_err(fail)? {
        let path = item.map_err(fail)?.path();
        if path.extension().is_none_or(|suffix| suffix != wanted) {
            continue;
        }
        let serial = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        serials.push(serial.ok_or_else(|| {
            StorageError::inconsistent(directory, format!("{} is not one of its files", path.display()))
        })?);
    }
    serials.sort_unstable();
    Ok(serials)
}

/// What is in a file that an earlier process made, durable on return.
pub(crate) fn recover(directory: &Path, serial: Serial) -> Result<Contents, StorageError> {
    match known(directory, serial)? {
        Some((contents, _)) => Ok(contents),
        None => rebuild(directory, serial),
    }
}

/// The same, and changes nothing in the directory.
pub(crate) fn look(directory: &Path, serial: Serial) -> Result<Contents, StorageError> {
    Ok(inspect(directory, serial)?.0)
}

/// The same, with what cannot be read of it.
pub(crate) fn inspect(directory: &Path, serial: Serial) -> Result<(Contents, Vec<Lost>), StorageError> {
    match known(directory, serial)? {
        Some((contents, lost)) => Ok((contents, lost.into_iter().collect())),
        None => scan(directory, serial),
    }
}

/// The files of which only the table of contents is there.
pub(crate) fn gone(directory: &Path) -> Result<Vec<Lost>, StorageError> {
    let present = list(directory)?;
    let mut gone = Vec::new();
    for serial in list_with(directory, CONTENTS_SUFFIX)? {
        if present.binary_search(&serial).is_ok() {
            continue;
        }
        let path = path_of(directory, serial, BLOCKS_SUFFIX);
        let first = read_contents(directory, serial)?.and_then(|contents| contents.first());
        gone.push(Lost { path, first, loss: Loss::Gone });
    }
    Ok(gone)
}

/// What the table beside a file says is in it, as far as the file goes, and what it lacks.
fn known(directory: &Path, serial: Serial) -> Result<Option<(Contents, Option<Lost>)>, StorageError> {
    let path = path_of(directory, serial, BLOCKS_SUFFIX);
    let metadata = fs::metadata(&path).map_err(|source| StorageError::io("look at", &path, source))?;
    let Some(mut contents) = read_contents(directory, serial)? else { return Ok(None) };
    if metadata.len() >= contents.bytes {
        return Ok(Some((contents, None)));
    }
    tracing::error!(
        file = %path.display(),
        bytes = metadata.len(),
        expected_bytes = contents.bytes,
        "a file of facts was cut; what it lacks is missing here"
    );
    let whole = |place: &Place| place.offset + place.bytes <= metadata.len();
    let first = contents.places.iter().find(|place| !whole(place)).map(|place| place.range.start);
    contents.places.retain(whole);
    contents.bytes = metadata.len();
    let lost = first.map(|first| Lost { path, first: Some(first), loss: Loss::Cut });
    Ok(Some((contents, lost)))
}

/// The table beside a file. None where it is not there or cannot be used: it can be made again.
pub(crate) fn read_contents(directory: &Path, serial: Serial) -> Result<Option<Contents>, StorageError> {
    let path = path_of(directory, serial, CONTENTS_SUFFIX);
    let record = match fs::read(&path) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StorageError::io("read", &path, source)),
    };
    match record::read(&record, Kind::FactsContents, CONTENTS_VERSION) {
        Ok(contents) => Ok(Some(contents)),
        Err(error @ record::RecordError::Version { .. }) => {
            Err(StorageError::damaged(&path, "a table of contents", error))
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(file = %path.display(), error, "making a table of contents again");
            Ok(None)
        }
    }
}

/// Makes the table of a file again, durable with it on return.
fn rebuild(directory: &Path, serial: Serial) -> Result<Contents, StorageError> {
    let (contents, _) = scan(directory, serial)?;
    let path = path_of(directory, serial, BLOCKS_SUFFIX);
    let synced = File::open(&path).and_then(|file| file.sync_data());
    synced.map_err(|source| StorageError::io("sync", &path, source))?;
    write_contents(directory, serial, &contents)?;
    Ok(contents)
}

/// Reads a file through. Of a block that does not check out, only the length is believed, to see
/// whether another one follows. Tells what it could not read.
fn scan(directory: &Path, serial: Serial) -> Result<(Contents, Vec<Lost>), StorageError> {
    let path = path_of(directory, serial, BLOCKS_SUFFIX);
    let bytes = Bytes::from(fs::read(&path).map_err(|source| StorageError::io("read", &path, source))?);
    let mut contents = Contents { places: Vec::new(), bytes: bytes.len() as u64 };
    let (mut lost, mut offset) = (Vec::new(), 0);
    let losing = |contents: &Contents, loss| Lost { path: path.clone(), first: contents.end(), loss };
    while let Some(record) = record::front(&bytes[offset..]) {
        if bytes[offset..].iter().all(|byte| *byte == 0) {
            // The length of a file can be durable before what was written there is.
            break;
        }
        let record = bytes.slice_ref(record);
        match Block::open(&record) {
            Ok(block) => {
                let place = Place { range: block.range, offset: offset as u64, bytes: record.len() as u64 };
                contents.places.push(place);
            }
            Err(error) if error.is_newer() => {
                return Err(StorageError::damaged(&path, format!("the block of facts at {offset}"), error));
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(file = %path.display(), offset, error, "a block of facts is damaged");
                lost.push(losing(&contents, Loss::Damaged));
            }
        }
        offset += record.len();
    }
    if offset < bytes.len() {
        tracing::info!(
            file = %path.display(),
            bytes = bytes.len() - offset,
            "a file of facts ends in a block that was never finished"
        );
        let damaged = is_whole_but_for_its_length(&bytes.slice(offset..));
        lost.push(losing(&contents, if damaged { Loss::Damaged } else { Loss::Unfinished }));
    }
    Ok((contents, lost))
}

/// Whether what claims to go on beyond the end of a file ends there all the same, or has another block in
/// it: then its length is damaged, and it was not cut off while it was written.
fn is_whole_but_for_its_length(rest: &Bytes) -> bool {
    if Block::open(&record::with_its_length(rest).into()).is_ok() {
        return true;
    }
    (1..rest.len()).any(|offset| {
        let behind = rest.slice(offset..);
        record::begins(&behind)
            && record::front(&behind).is_some_and(|block| Block::open(&behind.slice_ref(block)).is_ok())
    })
}

/// Reads one block and checks all of it.
pub(crate) fn read(directory: &Path, serial: Serial, place: &Place) -> Result<Read, StorageError> {
    let path = path_of(directory, serial, BLOCKS_SUFFIX);
    let what = || format!("the block of facts at {} (entries {:?})", place.offset, place.range);
    let mut record = vec![0; place.bytes as usize];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut record, place.offset));
    match read {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => {
            return Ok(Read::Damaged(StorageError::damaged(&path, what(), error)));
        }
        Err(source) => return Err(StorageError::io("read", &path, source)),
    }
    Ok(match Block::open(&record.into()) {
        Ok(block) if block.range == place.range => Read::Block(block),
        Ok(block) => Read::Damaged(StorageError::inconsistent(
            &path,
            format!("{} covers entries {:?}", what(), block.range),
        )),
        Err(error) if error.is_newer() => return Err(StorageError::damaged(&path, what(), error)),
        Err(error) => Read::Damaged(StorageError::damaged(&path, what(), error)),
    })
}
