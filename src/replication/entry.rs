//! One log entry is one batch: a time, and requests that were encoded once where they arrived.
//!
//! A batch is a single run of bytes: version, the rules it is decided by, proposed time, number of requests,
//! then each request behind its length and what was known of the log where it was taken. The node that receives a
//! request encodes it; a forwarder and the leader only put such runs one behind the other; disk, peers and apply
//! take the bytes as they are, and apply decodes requests that borrow from them. Nothing here knows what a
//! request means.

use std::fmt;
use std::ops::{Add, AddAssign, SubAssign};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decision::RULES;
use crate::decision::command::{Attempt, Command, Request};
use crate::replication::record::{self, RecordError};
use crate::replication::settings::Limits;
use crate::units::{Millis, Span};

/// The layout of a batch. A reader that meets another one must stop the node.
const VERSION: u8 = 3;
/// Version (1), rules (2), proposed time (8), number of requests (4).
const HEADER_BYTES: usize = 15;
/// In front of each request: its length, and the newest entry that was known where it was taken.
const FRAME_HEAD_BYTES: usize = 12;
const LENGTH_BYTES: usize = 4;

/// Requests encoded for the log, in order. Cheap to merge with others.
#[derive(Clone)]
pub struct Proposal {
    /// A whole batch whose time and count are filled in when it is sealed.
    buffer: Vec<u8>,
    asks: Asks,
}

/// What a proposal asks for in all.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asks {
    pub(crate) requests: usize,
    /// How many of them have an idempotency key.
    keys: usize,
    /// How large all replies to them can be, in bytes.
    reply_bytes_max: usize,
}

/// So many requests, and the bytes of their entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
}

/// Whatever is asked, its reply fits.
const _: () = assert!(Command::REPLY_BYTES_MAX <= Limits::REPLIES_BYTES_MAX);

/// The request is larger than a log entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request takes {bytes} bytes, more than the {bytes_max} that fit")]
pub struct TooLarge {
    pub bytes: usize,
    pub bytes_max: usize,
}

/// A sealed batch: what a log entry carries.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch(Bytes);

/// What helps where another build has made the log.
const BUILD_BEFORE: &str = "start the build it was made with again, keep traffic away, stop all nodes at once so that \
                            each writes a checkpoint of all it has, and then start this build";

/// Why bytes are not a batch of requests.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("the batch has version {actual}, and this build reads version {VERSION}: {BUILD_BEFORE}")]
    Version { actual: u8 },
    #[error("it was decided by rules {actual}, and this build has rules {RULES}: {BUILD_BEFORE}")]
    Rules { actual: u16 },
    #[error("the batch ends in the middle of something")]
    Cut,
    #[error("the batch says it has {expected} requests and has {actual}")]
    Count { expected: usize, actual: usize },
    #[error("{requests} requests and what they are answered are more than an entry takes")]
    TooMuch { requests: usize },
    #[error("request {position} of the batch cannot be read")]
    Request { position: usize, source: RecordError },
}

impl Default for Proposal {
    fn default() -> Self {
        Proposal::new()
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} requests, {} bytes)", self.len(), self.buffer.len())
    }
}

impl Proposal {
    pub fn new() -> Self {
        Proposal::with_capacity(1)
    }

    /// With room for about so many requests.
    pub fn with_capacity(requests: usize) -> Self {
        const REQUEST_BYTES_TYPICAL: usize = 192;
        let mut buffer = Vec::with_capacity(HEADER_BYTES + requests * REQUEST_BYTES_TYPICAL);
        buffer.resize(HEADER_BYTES, 0);
        Proposal { buffer, asks: Asks::default() }
    }

    /// Encodes one request behind those already there. Refused, and nothing added, when it is
    /// larger than [`Limits::REQUEST_BYTES_MAX`].
    pub fn push(&mut self, request: &Request<'_>) -> Result<(), TooLarge> {
        let start = self.buffer.len();
        self.buffer.resize(start + FRAME_HEAD_BYTES, 0);
        // A request is plain data, and writing to memory cannot fail; if a field ever could not be
        // encoded, the request would not fit a log entry either.
        let encoded = record::encode_into(request, &mut self.buffer);
        let bytes = self.buffer.len() - start - FRAME_HEAD_BYTES;
        if encoded.is_err() || bytes > Limits::REQUEST_BYTES_MAX {
            self.buffer.truncate(start);
            return Err(TooLarge { bytes, bytes_max: Limits::REQUEST_BYTES_MAX });
        }
        self.buffer[start..start + LENGTH_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
        self.asks += Asks::of(request);
        Ok(())
    }

    /// Notes that all of it was taken where every entry up to `index` was known.
    pub(crate) fn taken(&mut self, index: u64) {
        let mut rest = &mut self.buffer[HEADER_BYTES..];
        while let Some((head, behind)) = rest.split_first_chunk_mut::<FRAME_HEAD_BYTES>() {
            let (length, taken) = head.split_at_mut(LENGTH_BYTES);
            taken.copy_from_slice(&index.to_le_bytes());
            // Our own frames: `push` and `from_frames` made or checked them.
            let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
            rest = behind.split_at_mut_checked(length).map_or(&mut [], |(_, rest)| rest);
        }
    }

    /// How many requests it has.
    pub fn len(&self) -> usize {
        self.asks.requests
    }

    pub fn is_empty(&self) -> bool {
        self.asks.requests == 0
    }

    /// How much an entry of this proposal takes.
    pub(crate) fn size(&self) -> Size {
        Size { requests: self.len(), bytes: self.buffer.len() }
    }

    pub(crate) fn asks(&self) -> Asks {
        self.asks
    }

    /// Whether it and `other` fit one entry, and their replies one message.
    pub(crate) fn fits_with(&self, other: &Proposal, limits: &Limits) -> bool {
        self.buffer.len() + other.frames().len() <= limits.entry_bytes_max
            && self.asks.and(other.asks).fits(limits.entry_requests_max)
    }

    /// 16-byte fingerprint of all its requests with their keys, for the key of a whole batch. Not of when they were taken.
    pub fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        // Our own frames: `push` and `from_frames` made or checked them.
        for frame in Frames(self.frames()).map_while(Result::ok) {
            hash.update((frame.request.len() as u32).to_le_bytes());
            hash.update(frame.request);
        }
        truncated(hash)
    }

    /// Hands over the request at a place, from 0; none where it has fewer.
    pub fn with<T>(&self, place: usize, take: impl FnOnce(&Request<'_>) -> T) -> Option<T> {
        // Our own frames: `push` and `from_frames` made or checked them.
        let frame = Frames(self.frames()).nth(place)?.ok()?;
        record::decode::<Request<'_>>(frame.request).ok().map(|request| take(&request))
    }

    /// How many requests have an idempotency key.
    pub fn keys(&self) -> usize {
        self.asks.keys
    }

    /// The requests, each behind its head.
    pub(crate) fn frames(&self) -> &[u8] {
        &self.buffer[HEADER_BYTES..]
    }

    /// Puts the requests of `other` behind these.
    pub(crate) fn merge(&mut self, other: &Proposal) {
        self.buffer.extend_from_slice(other.frames());
        self.asks += other.asks;
    }

    /// Checks and takes what a peer sent: whole frames, each a request that this build can read, and not
    /// more than an entry takes.
    pub(crate) fn from_frames(frames: &[u8]) -> Result<Self, BatchError> {
        let mut buffer = Vec::with_capacity(HEADER_BYTES + frames.len());
        buffer.resize(HEADER_BYTES, 0);
        buffer.extend_from_slice(frames);
        let mut proposal = Proposal { buffer, asks: Asks::default() };
        for frame in Frames(frames) {
            let request: Request<'_> = record::decode(frame?.request)
                .map_err(|source| BatchError::Request { position: proposal.len(), source })?;
            proposal.asks += Asks::of(&request);
        }
        match proposal.buffer.len() <= Limits::ENTRY_BYTES_MAX
            && proposal.asks.reply_bytes_max <= Limits::REPLIES_BYTES_MAX
        {
            true => Ok(proposal),
            false => Err(BatchError::TooMuch { requests: proposal.len() }),
        }
    }

    /// The same of what a peer sent on its way to the leader: a batch with, in the place of its time, for how long the
    /// first of its requests has waited.
    pub(crate) fn from_forwarded(batch: &Bytes) -> Result<(Span, Self), BatchError> {
        let batch = Batch::from_bytes(batch.clone());
        let (waited, expected, _) = batch.open()?;
        let proposal = Proposal::from_frames(batch.frames_slice())?;
        match proposal.len() == expected {
            true => Ok((Span(waited.0), proposal)),
            false => Err(BatchError::Count { expected, actual: proposal.len() }),
        }
    }

    /// Takes back frames that this node made or checked before.
    pub(crate) fn from_own_frames(frames: &[u8], asks: Asks) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_BYTES + frames.len());
        buffer.resize(HEADER_BYTES, 0);
        buffer.extend_from_slice(frames);
        Proposal { buffer, asks }
    }

    /// How much of it waits at once: one entry after the other.
    pub(crate) fn waits_at_once(&self, limits: &Limits) -> Size {
        let Size { requests, bytes } = self.size();
        Size { requests: requests.min(limits.entry_requests_max), bytes: bytes.min(limits.entry_bytes_max) }
    }

    /// Cuts it into proposals that each fit an entry, and their replies one message, in order.
    pub(crate) fn split(self, limits: &Limits) -> Vec<Proposal> {
        if Proposal::new().fits_with(&self, limits) {
            return vec![self];
        }
        let mut parts = Vec::new();
        let mut rest = self.frames();
        while !rest.is_empty() {
            let (mut used, mut asks) = (0, Asks::default());
            // Our own frames: `push` and `from_frames` made or checked them.
            for frame in Frames(rest).map_while(Result::ok) {
                let next = used + FRAME_HEAD_BYTES + frame.request.len();
                let with_next = asks.and(Asks::of_frame(&frame));
                let full = HEADER_BYTES + next > limits.entry_bytes_max
                    || !with_next.fits(limits.entry_requests_max);
                if full && asks.requests > 0 {
                    break;
                }
                (used, asks) = (next, with_next);
            }
            parts.push(Proposal::from_own_frames(&rest[..used], asks));
            rest = &rest[used..];
        }
        parts
    }

    /// Stamps it with the time at which the leader proposes it.
    pub(crate) fn seal(mut self, at: Millis) -> Batch {
        self.buffer[0] = VERSION;
        self.buffer[1..3].copy_from_slice(&RULES.to_le_bytes());
        self.buffer[3..11].copy_from_slice(&at.0.to_le_bytes());
        self.buffer[11..15].copy_from_slice(&(self.asks.requests as u32).to_le_bytes());
        Batch(Bytes::from(self.buffer))
    }
}

impl Batch {
    /// Takes bytes from disk or a peer. Their content is checked when it is read.
    pub(crate) fn from_bytes(bytes: Bytes) -> Self {
        Batch(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The whole of it, sharing its memory.
    pub(crate) fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    pub(crate) fn frames_slice(&self) -> &[u8] {
        self.0.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The rules by which it is decided, on every node.
    pub(crate) fn rules(&self) -> Result<u16, BatchError> {
        let (header, _) = self.split()?;
        Ok(u16::from_le_bytes([header[1], header[2]]))
    }

    /// The time at which it was proposed, how many requests it has, and their frames. Fails where
    /// this build has other rules than it is decided by.
    pub(crate) fn open(&self) -> Result<(Millis, usize, Frames<'_>), BatchError> {
        let actual = self.rules()?;
        if actual != RULES {
            return Err(BatchError::Rules { actual });
        }
        let (header, frames) = self.split()?;
        let (mut at, mut count) = ([0; 8], [0; 4]);
        at.copy_from_slice(&header[3..11]);
        count.copy_from_slice(&header[11..15]);
        Ok((Millis(u64::from_le_bytes(at)), u32::from_le_bytes(count) as usize, Frames(frames)))
    }

    fn split(&self) -> Result<(&[u8; HEADER_BYTES], &[u8]), BatchError> {
        let (header, frames) = self.0.split_first_chunk().ok_or(BatchError::Cut)?;
        match header[0] {
            VERSION => Ok((header, frames)),
            actual => Err(BatchError::Version { actual }),
        }
    }

    /// The same, as if a build with other rules had proposed it.
    #[cfg(test)]
    pub(crate) fn with_rules(&self, rules: u16) -> Batch {
        let mut bytes = self.0.to_vec();
        bytes[1..3].copy_from_slice(&rules.to_le_bytes());
        Batch(Bytes::from(bytes))
    }

    /// Reads its requests one after the other, and checks that there are as many as it says.
    pub(crate) fn each(&self, mut take: impl FnMut(u32, &Attempt<'_>)) -> Result<(), BatchError> {
        self.each_group(1, |position, group| group.iter().for_each(|attempt| take(position, attempt)))
    }

    /// The same, some at a time, with the place of the first of them.
    pub(crate) fn each_group(
        &self,
        group_len: usize,
        mut take: impl FnMut(u32, &[Attempt<'_>]),
    ) -> Result<(), BatchError> {
        let (_, expected, mut frames) = self.open()?;
        let mut group = Vec::with_capacity(group_len);
        let mut actual = 0;
        loop {
            for frame in frames.by_ref().take(group_len) {
                let position = actual + group.len();
                let Frame { taken, request } = frame?;
                let request =
                    record::decode(request).map_err(|source| BatchError::Request { position, source })?;
                group.push(Attempt { taken, request });
            }
            if group.is_empty() {
                break;
            }
            take(actual as u32, &group);
            actual += group.len();
            group.clear();
        }
        match actual == expected {
            true => Ok(()),
            false => Err(BatchError::Count { expected, actual }),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.0.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Asks {
    fn of(request: &Request<'_>) -> Asks {
        Asks {
            requests: 1,
            keys: request.key.is_some().into(),
            reply_bytes_max: request.command.reply_bytes_max(),
        }
    }

    /// Of an encoded request; the most that one can ask for, if it cannot be read.
    fn of_frame(frame: &Frame<'_>) -> Asks {
        let most = Asks { requests: 1, keys: 0, reply_bytes_max: Command::REPLY_BYTES_MAX };
        record::decode::<Request<'_>>(frame.request).map_or(most, |request| Asks::of(&request))
    }

    fn and(self, other: Asks) -> Asks {
        Asks {
            requests: self.requests + other.requests,
            keys: self.keys + other.keys,
            reply_bytes_max: self.reply_bytes_max + other.reply_bytes_max,
        }
    }

    /// Whether an entry takes so many requests, and a message the replies.
    fn fits(self, requests_max: usize) -> bool {
        self.requests <= requests_max && self.reply_bytes_max <= Limits::REPLIES_BYTES_MAX
    }

    /// Whether each request has a key, so that all may be proposed again after an unknown outcome.
    pub(crate) fn is_keyed(self) -> bool {
        self.keys == self.requests
    }
}

impl Add for Size {
    type Output = Size;

    fn add(self, other: Size) -> Size {
        Size { requests: self.requests + other.requests, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Size) {
        *self = *self + other;
    }
}

impl SubAssign for Size {
    fn sub_assign(&mut self, other: Size) {
        self.requests -= other.requests;
        self.bytes -= other.bytes;
    }
}

impl AddAssign for Asks {
    fn add_assign(&mut self, other: Asks) {
        *self = self.and(other);
    }
}

/// The encoded requests of a batch, in order.
pub(crate) struct Frames<'a>(&'a [u8]);

/// An encoded request, and what was known where it was taken.
pub(crate) struct Frame<'a> {
    taken: u64,
    request: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let cut = |rest: &'a [u8]| {
            let (length, rest) = rest.split_first_chunk()?;
            let (taken, rest) = rest.split_first_chunk()?;
            let (request, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            Some((Frame { taken: u64::from_le_bytes(*taken), request }, rest))
        };
        match cut(self.0) {
            Some((frame, rest)) => {
                self.0 = rest;
                Some(Ok(frame))
            }
            None => {
                self.0 = &[];
                Some(Err(BatchError::Cut))
            }
        }
    }
}

/// 16-byte fingerprint of a command for idempotency keys (truncated SHA-256 over its canonical encoding).
pub fn fingerprint(command: &Command<'_>) -> [u8; 16] {
    struct Hashing(Sha256);
    impl std::io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hashing = Hashing(Sha256::new());
    // Plain data into a hash: there is nothing that can fail, and a partial hash would only make
    // two different commands look different still.
    let _ = record::encode_to(command, &mut hashing);
    truncated(hashing.0)
}

fn truncated(hash: Sha256) -> [u8; 16] {
    *hash.finalize().first_chunk().expect("a SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::command::{Admit, Key};

    fn admit(account: &str) -> Request<'_> {
        Request {
            key: None,
            command: Command::Admit(Admit {
                account,
                feature: "video.generate",
                usage: vec![("video_seconds", 20)],
                attributes: vec![],
                hold_ttl: None,
                dry_run: false,
                list_limits: true,
                endpoint: None,
                region: None,
                class: None,
            }),
        }
    }

    fn accounts(batch: &Batch) -> Vec<String> {
        let mut names = Vec::new();
        batch
            .each(|position, attempt| {
                assert_eq!(position as usize, names.len());
                match &attempt.request.command {
                    Command::Admit(admit) => names.push(admit.account.to_owned()),
                    other => panic!("unexpected {other:?}"),
                }
            })
            .expect("the batch reads");
        names
    }

    #[test]
    fn a_batch_gives_back_its_requests_in_order() {
        let mut proposal = Proposal::new();
        proposal.push(&admit("a")).expect("it fits");
        let mut other = Proposal::with_capacity(2);
        other.push(&admit("b")).expect("it fits");
        other.push(&admit("c")).expect("it fits");
        proposal.merge(&other);
        let batch = proposal.seal(Millis(77));
        let (at, count, _) = batch.open().expect("it opens");
        assert_eq!((at, count), (Millis(77), 3));
        assert_eq!(accounts(&batch), ["a", "b", "c"]);
    }

    #[test]
    fn a_large_proposal_splits_in_order_and_every_part_fits() {
        let limits = Limits { entry_bytes_max: 300, entry_requests_max: 4, ..Limits::default() };
        let names: Vec<String> = (0..50).map(|n| format!("account-{n}")).collect();
        let mut proposal = Proposal::new();
        for name in &names {
            proposal.push(&admit(name)).expect("it fits");
        }
        let parts = proposal.split(&limits);
        assert!(parts.iter().all(|part| part.size().bytes <= 300 && part.len() <= 4));
        let back: Vec<String> = parts.into_iter().flat_map(|part| accounts(&part.seal(Millis(0)))).collect();
        assert_eq!(back, names);
    }

    #[test]
    fn refuses_a_request_that_no_entry_can_hold_and_stays_whole() {
        let mut proposal = Proposal::new();
        proposal.push(&admit("a")).expect("it fits");
        let long = "x".repeat(Limits::REQUEST_BYTES_MAX);
        assert!(proposal.push(&admit(&long)).is_err());
        assert_eq!(accounts(&proposal.seal(Millis(0))), ["a"]);
    }

    #[test]
    fn refuses_cut_frames_and_unreadable_requests_from_a_peer() {
        let mut proposal = Proposal::new();
        proposal.push(&admit("a")).expect("it fits");
        let frames = proposal.frames().to_vec();
        assert_eq!(Proposal::from_frames(&frames).expect("whole").len(), 1);
        for length in 1..frames.len() {
            assert!(Proposal::from_frames(&frames[..length]).is_err(), "cut to {length}");
        }
        let unreadable = [&[2, 0, 0, 0][..], &[0; 8], &[0, 250]].concat();
        assert!(matches!(Proposal::from_frames(&unreadable), Err(BatchError::Request { position: 0, .. })));
    }

    #[test]
    fn takes_a_forwarded_batch_with_how_long_it_has_waited_and_no_other() {
        let mut proposal = Proposal::new();
        proposal.push(&admit("a")).expect("it fits");
        let batch = proposal.clone().seal(Millis(250));
        let (waited, forwarded) = Proposal::from_forwarded(&batch.to_bytes()).expect("whole");
        assert_eq!((waited, forwarded.frames()), (Span(250), proposal.frames()));
        let other_rules = batch.with_rules(RULES + 1).to_bytes();
        assert!(matches!(Proposal::from_forwarded(&other_rules), Err(BatchError::Rules { .. })));
        let mut miscounted = batch.as_bytes().to_vec();
        miscounted[11] += 1;
        let miscounted = Proposal::from_forwarded(&miscounted.into());
        assert!(matches!(miscounted, Err(BatchError::Count { expected: 2, actual: 1 })));
        assert!(matches!(Proposal::from_forwarded(&Bytes::new()), Err(BatchError::Cut)));
    }

    #[test]
    fn is_safe_to_repeat_only_when_every_request_has_a_key() {
        let mut proposal = Proposal::new();
        let keyed = Request { key: Some(Key { key: "k", fingerprint: [1; 16] }), ..admit("a") };
        proposal.push(&keyed).expect("it fits");
        assert!(proposal.asks().is_keyed());
        proposal.push(&admit("b")).expect("it fits");
        assert!(!proposal.asks().is_keyed());
        assert_eq!(proposal.keys(), 1);
        assert_eq!(Proposal::from_frames(proposal.frames()).expect("whole").keys(), 1);
    }

    #[test]
    fn each_request_keeps_what_was_known_where_it_was_taken() {
        let mut proposal = Proposal::new();
        proposal.push(&admit("a")).expect("it fits");
        proposal.push(&admit("b")).expect("it fits");
        let fingerprint = proposal.fingerprint();
        proposal.taken(7);
        let mut other = Proposal::new();
        other.push(&admit("c")).expect("it fits");
        other.taken(u64::MAX);
        assert_eq!(proposal.fingerprint(), fingerprint, "asked again later, it is the same");
        proposal.merge(&Proposal::from_frames(other.frames()).expect("whole"));
        let mut taken = Vec::new();
        proposal.seal(Millis(0)).each(|_, attempt| taken.push(attempt.taken)).expect("the batch reads");
        assert_eq!(taken, [7, 7, u64::MAX]);
    }

    #[test]
    fn fingerprints_differ_with_the_command() {
        assert_eq!(fingerprint(&admit("a").command), fingerprint(&admit("a").command));
        assert_ne!(fingerprint(&admit("a").command), fingerprint(&admit("b").command));
    }
}
