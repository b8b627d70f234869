//! What is read from disks and from other nodes, as fuzz targets (`crate::fuzzing`).
//!
//! Envelopes have a checksum that no input would ever hit. So what comes is read as it is, and once more sealed.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decision::command::{
    Admit, Change, Command, Extend, Key, PutAccount, PutGrant, PutPolicy, Release, Request, Settle, Source,
    Stamp,
};
use crate::decision::reply::{AdmissionId, Outcome};
use crate::decision::{Record, Restore, State};
use crate::replication::acquaintances::{self, Sighting, Sightings};
use crate::replication::checkpoint::{CHUNK_VERSION, MANIFEST_VERSION, Manifest};
use crate::replication::entry::{Batch, Proposal};
use crate::replication::error::MembershipError;
use crate::replication::facts::block::Block;
use crate::replication::facts::decode_facts;
use crate::replication::identity::Identity;
use crate::replication::log::disk::Group;
use crate::replication::log::journal::{self, Written};
use crate::replication::log::stored;
use crate::replication::log::witness::Testimony;
use crate::replication::peer::wire::{
    self, AppendAnswer, Appended, Change as MembershipChange, ChangeAnswer, CheckpointHead, FactsAnswer,
    FactsCall, ProposeAnswer, ReadAnswer, TransferAnswer, TransferCall, VoteAnswer, VoteCall,
};
use crate::replication::record::{self, Kind};
use crate::replication::settings::{Limits, Member};
use crate::replication::types::{Ballot, Entry, LogId, Position, Roster, TypeConfig, Vote};
use crate::units::{Credits, Millis, Span};

/// The input as it is, and as the body of a sound record.
fn forms(data: &[u8], kind: Kind, version: u8) -> [Bytes; 2] {
    let mut sealed = Vec::with_capacity(record::HEADER_BYTES + data.len());
    record::begin(&mut sealed);
    sealed.extend_from_slice(data);
    record::seal(&mut sealed, 0, kind, version);
    [Bytes::copy_from_slice(data), sealed.into()]
}

/// The body of a record, for an input.
fn body(record: &[u8]) -> Vec<u8> {
    record[record::HEADER_BYTES..].to_vec()
}

/// What is read, is written as what is read as the same.
fn holds<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value: T = record::decode(data).ok()?;
    let written = record::encode(&value).expect("what was read can be written");
    let again: T = record::decode(&written).expect("what was written can be read");
    assert_eq!(written, record::encode(&again).expect("it can be written"), "it is not the same");
    Some(value)
}

pub fn log_record(data: &[u8]) -> bool {
    let mut read = false;
    for record in forms(data, Kind::Entry, 1) {
        let Ok((header, entry)) = stored::read(&record) else { continue };
        read = true;
        let written = |header: &stored::Header, entry: &Entry| {
            let mut bytes = Vec::new();
            stored::write(entry, header.committed, &mut bytes).expect("what was read can be written");
            Bytes::from(bytes)
        };
        let once = written(&header, &entry);
        let (header, entry) = stored::read(&once).expect("what was written can be read");
        assert_eq!(once, written(&header, &entry), "it is not the same");
        if let EntryPayload::Normal(batch) = &entry.payload {
            _ = batch.rules();
            decide(batch);
        }
    }
    read
}

/// Requests as they travel, and what is decided of them.
pub fn requests(data: &[u8]) -> bool {
    let forwarded = Proposal::from_forwarded(&Bytes::copy_from_slice(data)).map(|(_, proposal)| proposal);
    let Ok(proposal) = forwarded.or_else(|_| Proposal::from_frames(data)) else { return false };
    let frames = proposal.frames().to_vec();
    assert!(data.ends_with(&frames));
    for place in 0..proposal.len() {
        assert!(proposal.with(place, |_| ()).is_some(), "request {place} of {}", proposal.len());
    }
    let count = proposal.len();
    let limits = Limits { entry_requests_max: 3, ..Limits::default() };
    let again = Proposal::from_frames(&frames).expect("as before");
    assert_eq!(again.split(&limits).iter().map(Proposal::len).sum::<usize>(), count);
    decide(&proposal.seal(Millis(1_900_000_000_000)));
    count > 0
}

/// Decides all of a batch on a small state: nothing that is asked may end a node.
fn decide(batch: &Batch) {
    let mut state = state();
    let first = state.now();
    let mut index = 1_000;
    _ = batch.each(|position, attempt| {
        index += u64::from(position == 0);
        let stamp = Stamp { at: first, term: 1, index, position };
        let reply = state.apply_attempt(stamp, attempt);
        let bytes = record::encode(&reply).expect("a reply can be written").len();
        let command = &attempt.request.command;
        assert!(bytes <= command.reply_bytes_max(), "{bytes} bytes for {command:?}");
    });
}

/// The small files of a node, and its journal: the first byte says which.
pub fn disk_record(data: &[u8]) -> bool {
    let Some((which, data)) = data.split_first() else { return false };
    match which % 5 {
        0 => {
            let read = |record: &Bytes| record::read::<Identity>(record, Kind::Identity, 1).is_ok();
            forms(data, Kind::Identity, 1).iter().any(read) && holds::<Identity>(data).is_some()
        }
        1 => {
            let read = |record: &Bytes| record::read::<Testimony>(record, Kind::Witness, 1).is_ok();
            forms(data, Kind::Witness, 1).iter().any(read) && holds::<Testimony>(data).is_some()
        }
        2 => {
            let forms = [1, 2].map(|version| forms(data, Kind::Acquaintances, version));
            let read = forms.as_flattened().iter().any(|record| acquaintances::read(record).is_ok());
            let of_header = Sightings::from_bytes(data);
            if let Some(sightings) = &of_header {
                assert_eq!(Sightings::from_bytes(&sightings.to_bytes()).as_ref(), Some(sightings));
            }
            read || of_header.is_some()
        }
        3 => {
            let run = |bytes: &Bytes| {
                let run = journal::run(bytes).unwrap_or_default();
                let together: usize = run.iter().map(|written| written.record.len()).sum();
                assert!(together <= bytes.len());
                !run.is_empty()
            };
            forms(data, Kind::Journal, 1).iter().any(run)
        }
        _ => {
            _ = record::front(data);
            _ = record::version(data);
            _ = record::open(&record::with_its_length(data), Kind::Entry, 1);
            record::begins(data)
        }
    }
}

pub fn checkpoint(data: &[u8]) -> bool {
    let mut read = false;
    for record in forms(data, Kind::Manifest, MANIFEST_VERSION) {
        if let Ok(manifest) = record::read::<Manifest>(&record, Kind::Manifest, MANIFEST_VERSION) {
            read |= manifest.meta().is_ok();
        }
    }
    for chunk in forms(data, Kind::Chunk, CHUNK_VERSION) {
        let Ok(body) = record::open(&chunk, Kind::Chunk, CHUNK_VERSION) else { continue };
        let Some(records) = records(body) else { continue };
        let Some(mut state) = restored(records, body.len()) else { continue };
        read = true;
        let written: Vec<Record> = state.view().records().collect();
        let again = restored(written.clone(), body.len()).expect("what was written can be restored");
        assert_eq!(written, again.view().records().collect::<Vec<_>>(), "it is not the same");
        // Whoever takes it over goes on.
        let stamp =
            Stamp { at: Millis(state.now().0.saturating_add(1)), term: 1, index: 1 << 40, position: 0 };
        state.apply(stamp, &Request { key: None, command: Command::Tick });
    }
    read
}

fn records(mut rest: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (record, used) = record::decode_front::<Record>(rest).ok()?;
        records.push(record);
        rest = &rest[used..];
    }
    Some(records)
}

fn restored(records: Vec<Record>, bytes: usize) -> Option<State> {
    let mut restore = Restore::with_room(bytes as u64);
    records.into_iter().try_for_each(|record| restore.push(record)).ok()?;
    restore.finish().ok()
}

/// What one node says to another: the first byte says which message it is.
pub fn peer_message(data: &[u8]) -> bool {
    let Some((which, data)) = data.split_first() else { return false };
    match which % 16 {
        0 => {
            let Ok(append) = wire::read_append(&Bytes::copy_from_slice(data)) else { return false };
            let written = wire::write_append(&append).expect("what was read can be written");
            let again = wire::read_append(&written).expect("what was written can be read");
            assert_eq!(written, wire::write_append(&again).expect("it can be written"));
            true
        }
        1 => holds(data).map(|answer: AppendAnswer| StreamAppendResult::from(answer.appended)).is_some(),
        2 => holds(data).map(|call: VoteCall| VoteRequest::<TypeConfig>::from(call)).is_some(),
        3 => holds(data).map(|answer: VoteAnswer| VoteResponse::<TypeConfig>::from(answer)).is_some(),
        4 => holds(data).map(|call: TransferCall| TransferLeaderRequest::<TypeConfig>::from(call)).is_some(),
        5 => {
            let transfer = |answer: TransferAnswer| TransferLeaderResponse::<TypeConfig>::from(answer);
            holds(data).map(transfer).is_some()
        }
        6 => holds(data).is_some_and(|head: CheckpointHead| head.manifest.meta().is_ok()),
        7 => Proposal::from_frames(data).is_ok(),
        8 => holds::<ProposeAnswer>(data).is_some(),
        9 => holds::<ReadAnswer>(data).is_some(),
        10 => holds::<MembershipChange>(data).is_some(),
        11 => holds::<ChangeAnswer>(data).is_some(),
        12 => holds::<FactsCall>(data).is_some(),
        13 => holds::<FactsAnswer>(data).is_some(),
        14 => holds::<Appended>(data).is_some(),
        _ => holds::<u64>(data).is_some(),
    }
}

/// What an entry left, and the blocks in which that is kept.
pub fn facts(data: &[u8]) -> bool {
    let mut read = false;
    if let Ok(facts) = decode_facts(data) {
        read = true;
        let written = record::encode(&facts).expect("what was read can be written");
        assert_eq!(decode_facts(&written).expect("what was written can be read"), facts);
    }
    for record in forms(data, Kind::Facts, 1) {
        let Ok(block) = Block::open(&record) else { continue };
        read = true;
        assert_eq!(Block::open(&block.seal().into()).expect("what was written can be read"), block);
        let parts = block.clone().split(100);
        let entries: Vec<_> = parts.into_iter().flat_map(|part| part.entries).collect();
        assert_eq!(entries, block.entries);
        for (_, facts) in &block.entries {
            _ = decode_facts(facts);
        }
    }
    read
}

const POLICY: &str = r#"{
    "features": {"f": {"units": ["u"], "price": {"u": "2"}, 
        "attributes": {"size": {"default": "s", "multipliers": {"s": "1", "l": "2.5"}}},
        "capacity": [{"name": "c", "quota": 1000, "algorithm": "slots"}]}},
    "plans": {"p": {"limits": [{"name": "l", "unit": "credits", "quota": "10", "algorithm": "token_bucket",
        "window": "1h", "then": "credits"}]}}
}"#;

fn commands() -> Vec<Command<'static>> {
    let admit = |hold_ttl, usage: Vec<(&'static str, u64)>| {
        Command::Admit(Admit {
            account: "a:b",
            feature: "f",
            usage,
            attributes: vec![("size", "l")],
            hold_ttl,
            dry_run: false,
            list_limits: true,
            endpoint: None,
            region: Some("r"),
            class: None,
        })
    };
    let put_account = |account| {
        Command::PutAccount(PutAccount {
            account,
            plan: Change::Set("p"),
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Keep,
        })
    };
    vec![
        Command::PutPolicy(PutPolicy { document: POLICY, if_revision: None }),
        put_account("a"),
        put_account("a:b"),
        Command::PutGrant(PutGrant {
            account: "a",
            id: "g",
            source: Source::Purchase,
            credits: Credits(1_000_000_000),
            priority: 50,
            effective_at: None,
            expires_at: Some(Millis(1_900_000_900_000)),
            reason: None,
        }),
        admit(None, vec![("u", 3)]),
        admit(Some(Span(60_000)), vec![("u", 40)]),
        admit(None, vec![("u", u64::MAX)]),
        Command::Settle(Settle {
            admission: AdmissionId(2),
            usage: vec![("u", 20)],
            compute_ms: Some(7),
            duration_ms: None,
            last: false,
        }),
        Command::Extend(Extend { admission: AdmissionId(2), ttl: Span(90_000) }),
        Command::Release(Release { admission: AdmissionId(2) }),
        Command::Tick,
    ]
}

/// A state with a little of everything, up to before the hold is released.
fn state() -> State {
    let mut state = State::new();
    for (place, command) in commands().into_iter().take(9).enumerate() {
        let stamp = Stamp { at: Millis(1_900_000_000_000), term: 1, index: place as u64 + 1, position: 0 };
        let key = (place == 4).then_some(Key { key: "k", fingerprint: [7; 16] });
        let reply = state.apply(stamp, &Request { key, command });
        let is_refused = matches!(reply.outcome, Outcome::Refused(_));
        // Nobody can pay for the seventh.
        assert_eq!(is_refused, place == 6, "command {place}: {:?}", reply.outcome);
    }
    state
}

fn proposal() -> Proposal {
    let mut proposal = Proposal::new();
    for command in commands() {
        let key = Some(Key { key: "key", fingerprint: [1; 16] }).filter(|_| command == Command::Tick);
        proposal.push(&Request { key, command }).expect("it fits");
    }
    proposal
}

fn member(id: u64) -> Member {
    let address = |port: u64| format!("127.0.0.1:{port}");
    Member { id, region: "r".into(), peer_address: address(7_200 + id), client_address: address(7_100 + id) }
}

fn roster() -> Roster {
    Roster {
        voters: vec![[1, 2].into(), [1, 3].into()],
        members: (1..=3).map(|id| (id, member(id))).collect(),
    }
}

const PLACE: Position = Position { term: 3, node: 1, index: 77 };
const BALLOT: Ballot = Ballot { term: 3, node: 1, committed: true };

fn entries() -> Vec<Entry> {
    let at = |index| LogId::from(Position { index, ..PLACE });
    let membership = roster().into_membership().expect("it is consistent");
    vec![
        Entry::new(at(1), EntryPayload::Blank),
        Entry::new(at(2), EntryPayload::Membership(membership)),
        Entry::new(at(3), EntryPayload::Normal(proposal().seal(Millis(1_900_000_000_000)))),
    ]
}

pub fn log_record_seeds() -> Vec<Vec<u8>> {
    let record = |entry: &Entry| {
        let mut record = Vec::new();
        stored::write(entry, Some(PLACE), &mut record).expect("it can be written");
        record
    };
    let records: Vec<Vec<u8>> = entries().iter().map(record).collect();
    records.iter().map(|record| body(record)).chain(records.iter().take(1).cloned()).collect()
}

pub fn requests_seeds() -> Vec<Vec<u8>> {
    let each = commands().into_iter().map(|command| {
        let mut proposal = Proposal::new();
        proposal.push(&Request { key: None, command }).expect("it fits");
        proposal.frames().to_vec()
    });
    let forwarded = proposal().seal(Millis(250)).as_bytes().to_vec();
    each.chain([proposal().frames().to_vec(), forwarded]).collect()
}

fn chosen(which: u8, bytes: impl Into<Vec<u8>>) -> Vec<u8> {
    [vec![which], bytes.into()].concat()
}

fn encoded<T: Serialize>(which: u8, value: &T) -> Vec<u8> {
    chosen(which, record::encode(value).expect("it can be written"))
}

pub fn disk_record_seeds() -> Vec<Vec<u8>> {
    let sightings = Sightings([(2, Sighting { incarnation: 77, writes: 5 })].into());
    let group = Group { entries: entries(), ..Group::default() };
    let written = Written::seal(&group, 7, Some(PLACE)).expect("it can be written");
    vec![
        encoded(0, &Identity { cluster_id: "c".into(), node: 1, incarnation: 7 }),
        encoded(1, &Testimony { generation: 9, last: Some(PLACE), ballot: Some(BALLOT) }),
        encoded(2, &sightings),
        chosen(2, sightings.to_bytes()),
        chosen(3, written.record.to_vec()),
        chosen(3, body(&written.record)),
        chosen(4, written.record[..40].to_vec()),
    ]
}

pub fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let mut chunk = Vec::new();
    for record in state().view().records() {
        record::encode_into(&record, &mut chunk).expect("it can be written");
    }
    let mut small = Vec::new();
    for record in State::new().view().records() {
        record::encode_into(&record, &mut small).expect("it can be written");
    }
    vec![chunk, small, record::encode(&manifest()).expect("it can be written")]
}

fn manifest() -> Manifest {
    Manifest::example(PLACE, roster())
}

pub fn peer_message_seeds() -> Vec<Vec<u8>> {
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(3, 1),
        prev_log_id: None,
        entries: entries(),
        leader_commit: None,
    };
    let mut state = state();
    let stamp = Stamp { at: Millis(1_900_000_000_000), term: 1, index: 99, position: 0 };
    let reply = state.apply(stamp, &Request { key: None, command: commands().swap_remove(5) });
    let vote = VoteRequest::<TypeConfig>::new(Vote::new(4, 2), None);
    vec![
        chosen(0, wire::write_append(&append).expect("it can be written").to_vec()),
        encoded(1, &AppendAnswer { writes: 9, appended: Appended::Matched(Some(PLACE)) }),
        encoded(2, &VoteCall::from(vote)),
        encoded(3, &VoteAnswer::from(VoteResponse::<TypeConfig>::new(Vote::new(4, 2), None, true))),
        encoded(5, &TransferAnswer::LogNotFlushed { expected: Some(PLACE), actual: None }),
        encoded(6, &CheckpointHead { ballot: BALLOT, manifest: manifest() }),
        chosen(7, proposal().frames().to_vec()),
        encoded(8, &ProposeAnswer::Replies(vec![reply.clone(), reply])),
        encoded(8, &ProposeAnswer::Unreadable("why".into())),
        encoded(9, &ReadAnswer::From(77)),
        encoded(10, &MembershipChange::Join(member(4))),
        encoded(11, &ChangeAnswer::Failed(MembershipError::NotCaughtUp { id: 4, lag: 500 })),
        encoded(12, &FactsCall { range: 5..9, bytes_max: 1_000, offset: 0 }),
        encoded(13, &FactsAnswer::Part { record_bytes: 9, part: Bytes::from_static(b"part") }),
        encoded(14, &Appended::HigherVote(BALLOT)),
        encoded(15, &1_900_000_000_000_u64),
    ]
}

pub fn facts_seeds() -> Vec<Vec<u8>> {
    let mut state = State::new();
    state.keep_facts(true);
    let mut each = Vec::new();
    for (place, command) in commands().into_iter().enumerate() {
        let index = place as u64 + 1;
        let stamp = Stamp { at: Millis(1_900_000_000_000), term: 1, index, position: 0 };
        state.apply(stamp, &Request { key: None, command });
        let facts = record::encode(&state.take_facts()).expect("it can be written");
        each.push((index, Bytes::from(facts)));
    }
    let block = Block { range: 1..each.len() as u64 + 1, entries: each.clone() };
    each.into_iter().map(|(_, facts)| facts.to_vec()).chain([body(&block.seal())]).collect()
}
