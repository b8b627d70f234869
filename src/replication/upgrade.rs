//! What lets a build with other rules take over: a log of which nothing has to be decided again.
//!
//! Entries say by which rules they were decided ([`RULES`]), and a node ends rather than decide them by
//! others: its state would differ from those that were decided before. So a node that is told to stop
//! writes a checkpoint of all that it has applied, and a node that starts with other rules on a log that its
//! checkpoint covers forgets that log: a node that is a little behind gets the checkpoint, not entries
//! that it could not apply.

use std::sync::Arc;

use openraft::EntryPayload;
use tokio::time::Instant;

use crate::decision::RULES;
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::error::StorageError;
use crate::replication::facts::FactStore;
use crate::replication::log::LogReader;
use crate::replication::log::disk::{Disk, Group, Recovered};
use crate::replication::machine::{Shared, off_the_runtime};
use crate::replication::types::Position;

/// How much of what is in the log beyond a checkpoint is looked at.
const BEYOND_BYTES_MAX: usize = 1024 * 1024;

/// Writes a checkpoint of what is applied, unless the newest one has all of it. Gives up when time is
/// out: then the next start applies what the log has, as after a kill. Call it when consensus has ended.
pub(crate) async fn checkpoint_at_stop(
    shared: &Shared,
    store: &Arc<CheckpointStore>,
    facts: &Arc<FactStore>,
    log: &LogReader,
    deadline: Instant,
) -> Result<(), StorageError> {
    let (view, applied, membership) = {
        let applied = shared.lock();
        (applied.state.view(), applied.last.map(Position::from), applied.membership.clone())
    };
    let (store, facts) = (store.clone(), facts.clone());
    let written = off_the_runtime(move || {
        facts.flush(applied.map_or(0, |applied| applied.index + 1))?;
        if applied <= store.newest()?.and_then(|manifest| manifest.last) {
            return Ok(true);
        }
        Ok(store.write_while(&view, applied, &membership, || Instant::now() < deadline)?.is_some())
    })
    .await?;
    let index = applied.map(|applied| applied.index);
    let next_index = index.map_or(0, |index| index + 1);
    let beyond = log.read(next_index..u64::MAX, BEYOND_BYTES_MAX)?;
    let batches = beyond.iter().filter(|entry| matches!(entry.payload, EntryPayload::Normal(_))).count();
    if !written {
        tracing::warn!(
            index,
            "there was no time for a checkpoint of all that is applied: the next start applies the log, and \
             needs a build with the same rules ({RULES})"
        );
    } else if batches > 0 {
        tracing::warn!(
            index,
            batches,
            "the log goes on beyond the checkpoint, with batches that are not known to be agreed: the next start \
             needs a build with the same rules ({RULES})"
        );
    } else {
        tracing::info!(index, "the checkpoint has all that was decided in the log");
    }
    Ok(())
}

/// Forgets a log whose newest batch was decided by other rules than `rules`, if the checkpoint, which ends
/// at `covered`, has all of it.
pub(crate) fn forget_other_rules(
    disk: &mut impl Disk,
    recovered: Recovered,
    covered: Option<Position>,
    rules: u16,
) -> Result<Recovered, StorageError> {
    let whole = covered.is_some() && covered >= recovered.last && recovered.purged < recovered.last;
    if !whole || is_decided_by(disk, recovered, rules)? {
        return Ok(recovered);
    }
    tracing::info!(
        index = covered.map(|covered| covered.index),
        rules,
        "the log was decided by other rules, and the checkpoint has all of it: the log is dropped"
    );
    disk.commit(&Group { purge: recovered.last, ..Group::default() })?;
    Ok(Recovered { purged: recovered.last, committed: recovered.committed.max(recovered.last), ..recovered })
}

/// Whether the newest batch of the log, if it has one, was decided by `rules`.
fn is_decided_by(disk: &impl Disk, recovered: Recovered, rules: u16) -> Result<bool, StorageError> {
    let reader = disk.reader();
    let first = recovered.purged.map_or(0, |purged| purged.index + 1);
    let next = recovered.last.map_or(0, |last| last.index + 1);
    for index in (first..next).rev() {
        for entry in reader.read(index..index + 1, usize::MAX)? {
            if let EntryPayload::Normal(batch) = entry.payload {
                return Ok(batch.rules().is_ok_and(|decided_by| decided_by == rules));
            }
        }
    }
    Ok(true)
}
