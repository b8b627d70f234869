//! The one thread that writes what apply hands over: block after block, and syncs when it is asked to or
//! enough was written.
//!
//! The first error is the last thing that it does: the node ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use crate::replication::error::{StorageError, panic_text};
use crate::replication::facts::block::Block;
use crate::replication::facts::file::Appender;
use crate::replication::facts::{Common, Queue};

/// What there is to do next.
enum Job {
    Write(Block),
    /// Everything that is waited for is written.
    Sync,
    End,
}

pub(crate) fn start(common: Arc<Common>) -> Result<JoinHandle<()>, StorageError> {
    let directory = common.directory.clone();
    std::thread::Builder::new()
        .name("facts-writer".to_owned())
        .spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| run(&common))).unwrap_or_else(|panic| {
                let path = common.directory.clone();
                Err(StorageError::Panicked { path, detail: panic_text(&*panic) })
            });
            // First, so that what fails after it is not taken for the reason.
            if let Err(error) = ended {
                (common.on_failure)(&error);
            }
            common.queue().ended = true;
            common.durable.notify_all();
            common.room.notify_one();
        })
        .map_err(|source| StorageError::io("start a thread for", &directory, source))
}

fn run(common: &Common) -> Result<(), StorageError> {
    let mut appender: Option<Appender> = None;
    loop {
        match next_job(common) {
            Job::Write(block) => {
                common.append(&mut appender, &block)?;
                common.queue().tail.remove(&block);
                common.room.notify_one();
            }
            Job::Sync => {
                // Before the sync: what is written after it is not covered by it.
                let written = common.queue().written_index();
                if let Some(appender) = &mut appender {
                    appender.sync()?;
                }
                common.queue().durable_index = written;
                common.durable.notify_all();
            }
            Job::End => {
                common.end(&mut appender)?;
                let mut queue = common.queue();
                queue.durable_index = queue.written_index();
                return Ok(());
            }
        }
    }
}

/// Waits until there is something to do.
fn next_job(common: &Common) -> Job {
    let block_bytes = common.limits.facts_block_bytes;
    let mut queue = common.queue();
    loop {
        let wanted = queue.tail.first().is_some_and(|first| first < queue.wanted_index);
        if (wanted || queue.pressed || queue.stopping || queue.tail.has_full_block(block_bytes))
            && let Some(block) = queue.tail.front_block(block_bytes)
        {
            return Job::Write(block);
        }
        queue.pressed = false;
        if queue.durable_index < queue.wanted_index {
            return Job::Sync;
        }
        if queue.stopping {
            return Job::End;
        }
        queue = common.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Queue {
    /// Everything that was handed over below this is in a file.
    fn written_index(&self) -> u64 {
        self.tail.first().unwrap_or(self.next_index)
    }
}
