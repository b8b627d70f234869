//! The facts of this node: what the apply of each log entry leaves behind for good.
//!
//! Facts only grow and are never changed. They are derived from the log: applying an entry again gives
//! the same bytes. So apply waits for no disk; what it hands over is in memory (`tail`) until a thread
//! (`writer`) has packed it into blocks (`block`) and written them to files (`file`). `extent` knows which file
//! answers for which entries, and so what is missing; `fetch` gets that from other nodes.
//!
//! What must hold:
//! - Nothing that was handed over is dropped. When too much waits, apply waits.
//! - No checkpoint is sealed before the facts up to it are durable ([`FactStore::flush`]). Only behind
//!   a checkpoint may the log be purged; so what this node lost can be made again from its own log.
//! - An entry without facts and an entry whose facts are missing are never mixed up: a block says which
//!   range it covers, and what no block covers is missing.
//! - What is damaged is missing, and never served.

pub(crate) mod block;
mod extent;
pub(crate) mod fetch;
mod file;
mod tail;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::decision::facts::Fact;
use crate::replication::error::StorageError;
use crate::replication::facts::block::{Block, entry_bytes};
use crate::replication::facts::extent::{Extent, Serial};
use crate::replication::facts::file::{Appender, Contents, Place, Read};
pub(crate) use crate::replication::facts::file::{Loss, Lost};
use crate::replication::facts::tail::Tail;
use crate::replication::record::{self, RecordError};
use crate::replication::settings::Limits;
use crate::replication::small_file::sync_directory;

/// Called with what went wrong.
pub(crate) type OnFailure = Box<dyn Fn(&StorageError) + Send + Sync>;

/// The facts of consecutive log entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactsPage {
    /// The entries that this page answers for. The next page begins at its end (or, going back, ends at
    /// its start).
    pub covered: Range<u64>,
    /// The facts of those that left any, in the order of the log.
    pub entries: Vec<(u64, Bytes)>,
}

impl FactsPage {
    /// What it takes in memory, nearly.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(_, facts)| facts.len()).sum()
    }
}

/// The facts of an entry, of which a page holds the bytes.
pub fn decode_facts(facts: &[u8]) -> Result<Vec<Fact>, RecordError> {
    record::decode(facts)
}

/// How much this node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactsStatus {
    pub bytes: u64,
    /// Applied entries whose facts are missing here.
    pub missing_entries: u64,
    /// From this entry on nothing that was applied is missing.
    pub complete_from: u64,
}

/// Why there is no page.
#[derive(Debug)]
pub(crate) enum Unread {
    /// These entries' facts are not here.
    Missing(Range<u64>),
    Storage(StorageError),
}

impl From<StorageError> for Unread {
    fn from(error: StorageError) -> Self {
        Unread::Storage(error)
    }
}

/// The facts of this node. Dropping it lets the writer thread write what it has, and end.
pub(crate) struct FactStore {
    common: Arc<Common>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// What is being filled with what other nodes had.
    filling: Mutex<Option<Appender>>,
}

/// What the writer thread and all others share. One lock at a time.
struct Common {
    directory: PathBuf,
    limits: Limits,
    queue: Mutex<Queue>,
    /// The writer has something to do.
    work: Condvar,
    /// Something became durable, or never will.
    durable: Condvar,
    /// There may be room in the tail.
    room: Notify,
    shelf: Mutex<Shelf>,
    next_serial: AtomicU64,
    /// How it is found what is in a file.
    contents_of: ContentsOf,
    on_failure: OnFailure,
    /// Whether there is no disk: what is flushed stays in the tail.
    #[cfg(test)]
    in_memory: bool,
}

type ContentsOf = fn(&Path, Serial) -> Result<Contents, StorageError>;

struct Queue {
    tail: Tail,
    /// What comes below this is here already: it was handed over, or here before the log was applied again.
    next_index: u64,
    /// Everything that was handed over below this is durable.
    durable_index: u64,
    /// Everything that was handed over below this is waited for.
    wanted_index: u64,
    /// Apply waits for room: what is here is written, however little it is.
    pressed: bool,
    stopping: bool,
    /// The writer has ended: nothing more becomes durable.
    ended: bool,
}

/// What is in files.
#[derive(Default)]
struct Shelf {
    extent: Extent,
    /// The contents of files that are still being written.
    growing: BTreeMap<Serial, Contents>,
    /// The contents of the file that was last read from.
    recent: Option<(Serial, Arc<Contents>)>,
    bytes: u64,
}

impl FactStore {
    /// Opens what is there and starts the writer. The log will be applied from `next_index` on: what an
    /// earlier process wrote of that, and is sound, is not written again.
    pub(crate) fn open(
        directory: &Path,
        next_index: u64,
        limits: &Limits,
        on_failure: OnFailure,
    ) -> Result<Self, StorageError> {
        fs::create_dir_all(directory).map_err(|source| StorageError::io("create", directory, source))?;
        directory.parent().map_or(Ok(()), sync_directory)?;
        let (shelf, serials) = shelve(directory, file::recover)?;
        let missing: u64 = entries_in(&shelf.extent.gaps(next_index));
        if missing > 0 {
            tracing::warn!(missing, "facts of log entries are missing here; other nodes are asked for them");
        }
        let common = Common {
            limits: limits.clone(),
            next_serial: AtomicU64::new(serials.last().map_or(1, |last| last + 1)),
            on_failure,
            ..Common::new(directory, shelf, next_index, file::recover)
        };
        let common = Arc::new(common);
        common.resume()?;
        let writer = writer::start(common.clone())?;
        Ok(FactStore { common, writer: Mutex::new(Some(writer)), filling: Mutex::default() })
    }

    /// Opens what is there to read it, and changes nothing in the directory. Tells what was lost, as far as
    /// files and their tables show it and no other file has it; what they list is checked when it is read.
    pub(crate) fn open_to_read(directory: &Path) -> Result<(Self, Vec<Lost>), StorageError> {
        let mut lost = file::gone(directory)?;
        let (shelf, _) = shelve(directory, |directory, serial| {
            let (contents, lost_of_it) = file::inspect(directory, serial)?;
            lost.extend(lost_of_it);
            Ok(contents)
        })?;
        // What a file begins with goes on where all others end, or fills a gap before.
        let first_gap = shelf.extent.gaps(u64::MAX).first().map_or(0, |gap| gap.start);
        lost.retain(|lost| shelf.extent.at(lost.first.unwrap_or(first_gap)).is_none());
        lost.iter_mut().for_each(|lost| _ = lost.first.get_or_insert(first_gap));
        let next_index = shelf.extent.end();
        let common = Arc::new(Common::new(directory, shelf, next_index, file::look));
        Ok((FactStore { common, writer: Mutex::default(), filling: Mutex::default() }, lost))
    }

    /// Facts in memory alone, for simulated nodes: `kept` is what an earlier process made durable.
    #[cfg(test)]
    pub(crate) fn in_memory(next_index: u64, kept: Vec<Block>) -> Self {
        let mut common = Common::new(Path::new("facts"), Shelf::default(), next_index, file::look);
        common.in_memory = true;
        let mut queue = common.queue();
        for block in kept {
            let mut entries = block.entries.into_iter().peekable();
            for index in block.range {
                let facts = entries.next_if(|(of, _)| *of == index).map(|(_, facts)| facts);
                queue.tail.push(index, facts);
                queue.next_index = queue.next_index.max(index + 1);
            }
        }
        queue.durable_index = queue.next_index;
        drop(queue);
        FactStore { common: Arc::new(common), writer: Mutex::default(), filling: Mutex::default() }
    }

    /// What a crash leaves of facts that are in memory alone.
    #[cfg(test)]
    pub(crate) fn durable_blocks(&self) -> Vec<Block> {
        let queue = self.common.queue();
        let runs: Vec<Range<u64>> = queue.tail.ranges().collect();
        let durable = runs.into_iter().map(|run| run.start..run.end.min(queue.durable_index));
        durable.filter(|run| !run.is_empty()).filter_map(|run| queue.tail.find(&run, usize::MAX)).collect()
    }

    /// The index after the last entry of which there is something in a file.
    pub(crate) fn end(&self) -> u64 {
        self.common.shelf().extent.end()
    }

    /// Takes what the apply of an entry left; `None` where it left nothing. Entries come in order. Waits
    /// while too much is not written yet. Not durable on return.
    pub(crate) async fn push(&self, index: u64, facts: Option<Bytes>) -> Result<(), StorageError> {
        let bytes = facts.as_ref().map_or(0, entry_bytes);
        loop {
            let room = self.common.room.notified();
            {
                let mut queue = self.common.queue();
                if queue.ended {
                    return Err(StorageError::Stopped);
                }
                if index < queue.next_index {
                    return Ok(());
                }
                let waiting = queue.tail.bytes();
                if waiting == 0 || waiting + bytes <= self.common.limits.facts_waiting_bytes_max {
                    queue.tail.push(index, facts);
                    queue.next_index = index + 1;
                    if queue.tail.has_full_block(self.common.limits.facts_block_bytes) {
                        self.common.work.notify_one();
                    }
                    return Ok(());
                }
                queue.pressed = true;
                self.common.work.notify_one();
            }
            room.await;
        }
    }

    /// Returns when everything that was handed over below `next_index` is durable. Blocks.
    pub(crate) fn flush(&self, next_index: u64) -> Result<(), StorageError> {
        let mut queue = self.common.queue();
        let wanted = next_index.min(queue.next_index);
        #[cfg(test)]
        if self.common.in_memory {
            queue.durable_index = queue.durable_index.max(wanted);
            return Ok(());
        }
        queue.wanted_index = queue.wanted_index.max(wanted);
        self.common.work.notify_one();
        let waiting = |queue: &mut Queue| queue.durable_index < wanted && !queue.ended;
        let queue = self.common.durable.wait_while(queue, waiting).unwrap_or_else(PoisonError::into_inner);
        if queue.durable_index < wanted { Err(StorageError::Stopped) } else { Ok(()) }
    }

    /// The facts of `range` from its start on: of all of it, or fewer where they take more than `bytes_max`
    /// (of one entry at least) or the next ones are missing. Blocks on the disk.
    pub(crate) fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<FactsPage, Unread> {
        let mut page = FactsPage { covered: range.start..range.start, entries: Vec::new() };
        let mut bytes = 0;
        while page.covered.end < range.end && bytes < bytes_max {
            let rest = page.covered.end..range.end;
            let Some(block) = self.common.block_at(&rest, bytes_max - bytes)? else {
                if page.covered.is_empty() {
                    return Err(Unread::Missing(self.gap_at(rest)));
                }
                break;
            };
            for (index, facts) in block.entries {
                bytes += facts.len();
                if bytes > bytes_max && !page.entries.is_empty() {
                    page.covered.end = index;
                    return Ok(page);
                }
                page.entries.push((index, facts));
            }
            page.covered.end = block.range.end;
        }
        Ok(page)
    }

    /// The same going back: of the entries before `end`, as many as fit.
    pub(crate) fn read_back(&self, end: u64, bytes_max: usize) -> Result<FactsPage, Unread> {
        let mut page = FactsPage { covered: end..end, entries: Vec::new() };
        let mut bytes = 0;
        'reading: while page.covered.start > 0 && bytes < bytes_max {
            let before = page.covered.start;
            let Some(block) = self.common.block_before(before)? else {
                if page.covered.is_empty() {
                    return Err(Unread::Missing(self.gap_before(before)));
                }
                break;
            };
            for (index, facts) in block.entries.into_iter().rev() {
                bytes += facts.len();
                if bytes > bytes_max && !page.entries.is_empty() {
                    page.covered.start = index + 1;
                    break 'reading;
                }
                page.entries.push((index, facts));
            }
            page.covered.start = block.range.start;
        }
        page.entries.reverse();
        Ok(page)
    }

    /// Takes what another node had. It can be read on return, and is durable some time later: what a crash
    /// takes of it is missing again. Blocks.
    pub(crate) fn fill(&self, block: &Block) -> Result<(), StorageError> {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        self.common.append(&mut filling, block)
    }

    /// Ends the file that was filled. Durable on return.
    pub(crate) fn end_filling(&self) -> Result<(), StorageError> {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        self.common.end(&mut filling)
    }

    /// What is missing of the entries below `next_index`.
    pub(crate) fn gaps(&self, next_index: u64) -> Vec<Range<u64>> {
        let runs: Vec<Range<u64>> = self.common.queue().tail.ranges().collect();
        // What has gone from the tail since then is on the shelf.
        let mut gaps = self.common.shelf().extent.gaps(next_index);
        for run in runs {
            gaps = gaps.into_iter().flat_map(|gap| without(&gap, &run)).collect();
        }
        gaps
    }

    /// The first entry of `range` whose facts are here.
    pub(crate) fn first_of(&self, range: &Range<u64>) -> Option<u64> {
        let gaps = self.gaps(range.end);
        let first =
            gaps.into_iter().find(|gap| gap.contains(&range.start)).map_or(range.start, |gap| gap.end);
        (first < range.end).then_some(first)
    }

    /// Whether all of `range` is here.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.gaps(range.end).last().is_none_or(|gap| gap.end <= range.start)
    }

    /// What is missing from the start of `range` on.
    fn gap_at(&self, range: Range<u64>) -> Range<u64> {
        self.gaps(range.end).into_iter().find(|gap| gap.contains(&range.start)).unwrap_or(range)
    }

    /// What is missing up to `end`.
    fn gap_before(&self, end: u64) -> Range<u64> {
        self.gaps(end).pop().filter(|gap| gap.end == end).unwrap_or(end - 1..end)
    }

    /// How much is here of the entries below `next_index`.
    pub(crate) fn status(&self, next_index: u64) -> FactsStatus {
        let gaps = self.gaps(next_index);
        let waiting = self.common.queue().tail.bytes() as u64;
        FactsStatus {
            bytes: self.common.shelf().bytes + waiting,
            missing_entries: entries_in(&gaps),
            complete_from: gaps.last().map_or(0, |gap| gap.end),
        }
    }

    /// Makes everything durable and ends the writer. Nothing can be handed over any more. Blocks.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        {
            let mut queue = self.common.queue();
            queue.stopping = true;
            self.common.work.notify_one();
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // It catches its own panics.
            let _ = writer.join();
        }
        self.end_filling()?;
        #[cfg(test)]
        if self.common.in_memory {
            return self.flush(u64::MAX);
        }
        let queue = self.common.queue();
        if queue.durable_index < queue.next_index { Err(StorageError::Stopped) } else { Ok(()) }
    }
}

impl Drop for FactStore {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            // What it could not write is made again from the log.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the facts were not closed");
        }
    }
}

/// What the files of a directory answer for, and which they are.
fn shelve(
    directory: &Path,
    mut contents_of: impl FnMut(&Path, Serial) -> Result<Contents, StorageError>,
) -> Result<(Shelf, Vec<Serial>), StorageError> {
    let mut shelf = Shelf::default();
    let serials = file::list(directory)?;
    for &serial in &serials {
        let contents = contents_of(directory, serial)?;
        shelf.bytes += contents.bytes;
        for range in contents.ranges() {
            shelf.extent.put(range, serial);
        }
    }
    Ok((shelf, serials))
}

impl Common {
    /// What is shared where nothing is written.
    fn new(directory: &Path, shelf: Shelf, next_index: u64, contents_of: ContentsOf) -> Common {
        let queue = Queue {
            tail: Tail::default(),
            next_index,
            durable_index: next_index,
            wanted_index: 0,
            pressed: false,
            stopping: false,
            ended: false,
        };
        Common {
            directory: directory.to_owned(),
            limits: Limits::default(),
            queue: Mutex::new(queue),
            work: Condvar::new(),
            durable: Condvar::new(),
            room: Notify::new(),
            shelf: Mutex::new(shelf),
            next_serial: AtomicU64::new(1),
            contents_of,
            on_failure: Box::new(|_| {}),
            #[cfg(test)]
            in_memory: false,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds how far what is here goes on from where the log will be applied. Only what checks out counts:
    /// the rest can still be made from the log.
    fn resume(&self) -> Result<(), StorageError> {
        let mut next_index = self.queue().next_index;
        while let Some(block) = self.shelved_block(next_index)? {
            next_index = block.range.end;
        }
        let mut queue = self.queue();
        (queue.next_index, queue.durable_index) = (next_index, next_index);
        Ok(())
    }

    /// Writes a block behind those in `appender`, or into a new file where it does not go on there. On
    /// return it can be read.
    fn append(&self, appender: &mut Option<Appender>, block: &Block) -> Result<(), StorageError> {
        let full = self.limits.facts_file_bytes;
        if appender.as_ref().is_some_and(|appender| !appender.precedes(block) || appender.bytes() >= full) {
            self.end(appender)?;
        }
        let appender = match appender {
            Some(appender) => appender,
            None => {
                let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
                appender.insert(Appender::create(&self.directory, serial)?)
            }
        };
        let place = appender.append(block)?;
        let mut shelf = self.shelf();
        shelf.bytes += place.bytes();
        shelf.extent.put(block.range.clone(), appender.serial);
        shelf.growing.entry(appender.serial).or_default().places.push(place);
        if appender.unsynced_bytes() >= self.limits.facts_sync_bytes {
            drop(shelf);
            appender.sync()?;
        }
        Ok(())
    }

    /// Ends a file: from now on its contents are read from beside it.
    fn end(&self, appender: &mut Option<Appender>) -> Result<(), StorageError> {
        let Some(appender) = appender.take() else { return Ok(()) };
        let serial = appender.serial;
        appender.finish()?;
        self.shelf().growing.remove(&serial);
        Ok(())
    }

    /// What is here of `range` from its start on, if anything.
    fn block_at(&self, range: &Range<u64>, bytes_max: usize) -> Result<Option<Block>, StorageError> {
        // The tail first: what goes from there is on the shelf before.
        if let Some(block) = self.queue().tail.find(range, bytes_max) {
            return Ok(Some(block));
        }
        Ok(self.shelved_block(range.start)?.map(|block| block.within(range)))
    }

    /// The block that ends at `end`, if it is here.
    fn block_before(&self, end: u64) -> Result<Option<Block>, StorageError> {
        {
            let queue = self.queue();
            if let Some(run) = queue.tail.run_before(end).filter(|run| run.end == end) {
                return Ok(queue.tail.find(&run, usize::MAX));
            }
        }
        Ok(self.shelved_block(end - 1)?.map(|block| block.within(&(0..end))))
    }

    /// The block that `index` is in, as far as the same file answers for it. One that is damaged is missing from
    /// now on.
    fn shelved_block(&self, index: u64) -> Result<Option<Block>, StorageError> {
        let Some((run, serial, place)) = self.place_of(index)? else { return Ok(None) };
        match file::read(&self.directory, serial, &place)? {
            Read::Block(block) => Ok(Some(block.within(&run))),
            Read::Damaged(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "facts are damaged, and so missing here");
                let range = place.range.start.max(run.start)..place.range.end.min(run.end);
                let mut shelf = self.shelf();
                if shelf.extent.at(index).is_some_and(|(_, now)| now == serial) {
                    shelf.extent.cut(&range);
                }
                Ok(None)
            }
        }
    }

    /// The file that answers for `index`, the run for which it does, and where in it the block is.
    fn place_of(&self, index: u64) -> Result<Option<(Range<u64>, Serial, Place)>, StorageError> {
        let (run, serial, known) = {
            let shelf = self.shelf();
            let Some((run, serial)) = shelf.extent.at(index) else { return Ok(None) };
            if let Some(contents) = shelf.growing.get(&serial) {
                let place = contents.at(index).cloned();
                return Ok(place.map(|place| (run, serial, place)));
            }
            let known = shelf.recent.as_ref().filter(|(recent, _)| *recent == serial);
            (run, serial, known.map(|(_, contents)| contents.clone()))
        };
        let contents = match known {
            Some(contents) => contents,
            None => {
                let contents = Arc::new((self.contents_of)(&self.directory, serial)?);
                self.shelf().recent = Some((serial, contents.clone()));
                contents
            }
        };
        if let Some(place) = contents.at(index) {
            return Ok(Some((run, serial, place.clone())));
        }
        tracing::error!(serial, index, "a file of facts lacks what it had, which is so missing here");
        self.shelf().extent.cut(&run);
        Ok(None)
    }
}

fn entries_in(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// What is left of `range` without `taken`.
fn without(range: &Range<u64>, taken: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let before = range.start..range.end.min(taken.start);
    let after = range.start.max(taken.end)..range.end;
    [before, after].into_iter().filter(|left| !left.is_empty())
}
