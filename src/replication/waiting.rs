//! Requests that wait, and those that travel together: who is told what.
//!
//! Pure: no clock, no network. The driver (`batcher`) says when a group goes and what became of it;
//! this says who is offered again and what each one hears.
//!
//! What must hold: a request without a key is never offered again once it may have been appended; what
//! may have been appended is never said not to have been, whatever becomes of it later; who has waited longest,
//! on this node or on the one that sent it, goes first, also when it is offered again; what goes together fits
//! one entry, and all replies to it one message; and the queue has a bound, beyond which comes only what goes on with what was begun,
//! an entry of each caller at most.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::decision::reply::Reply;
use crate::replication::entry::{Asks, Batch, Proposal, Size};
use crate::replication::settings::Limits;
use crate::units::Millis;

/// Who waits for the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A caller on this node.
    Here,
    /// Another node, which took this one for the leader. Never offered again: it knows best where to
    /// ask next.
    Peer,
}

/// Why there are no replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Never appended.
    NotLeader,
    /// Never appended: it waited to its deadline.
    Expired,
    /// Never appended.
    Overloaded,
    /// Never appended: this node is stopping.
    Closed,
    /// It may have been appended.
    Unknown(&'static str),
}

/// How an attempt to decide a group ended without replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was not appended, and may be by another attempt.
    NotAppended,
    /// It was not appended, and there is no use in another attempt now.
    Refused(Refusal),
    /// Nobody knows whether it was appended.
    PerhapsAppended(&'static str),
}

/// Resolves with the replies, or with why there are none.
pub(crate) type Answer = oneshot::Receiver<Result<Vec<Reply>, Refusal>>;

/// What there must be room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// For what is proposed, and for so much that will follow it.
    Before(Size),
    /// It goes on with what has begun, and is taken however much waits.
    Begun,
}

impl Room {
    /// For what is proposed alone.
    pub(crate) const ALONE: Room = Room::Before(Size { requests: 0, bytes: 0 });
}

#[derive(Default)]
pub(crate) struct Waiting {
    /// In the order in which they came, to whichever node.
    waiters: VecDeque<Waiter>,
    /// Of all of them.
    size: Size,
    next_id: u64,
    closed: bool,
}

struct Waiter {
    proposal: Proposal,
    caller: Caller,
}

/// Who is to be answered.
struct Caller {
    id: u64,
    origin: Origin,
    /// When it came to the node that took it.
    since: Instant,
    /// It was offered before, and nobody knows what became of that.
    perhaps_appended: bool,
    answer: oneshot::Sender<Result<Vec<Reply>, Refusal>>,
}

/// Waiters whose requests travel together.
pub(crate) struct Group {
    pub(crate) batch: Batch,
    parts: Vec<Part>,
}

/// A group that has no time yet.
pub(crate) struct Gathered {
    proposal: Proposal,
    parts: Vec<Part>,
}

/// One waiter's share of a group.
struct Part {
    asks: Asks,
    /// Of the group's frames.
    bytes: usize,
    caller: Caller,
}

impl Caller {
    /// Its place among all that wait.
    fn turn(&self) -> (Instant, u64) {
        (self.since, self.id)
    }

    /// All refusals pass here, so that none can forget an earlier attempt.
    fn refuse(self, refusal: Refusal) {
        let refusal = self.truth_of(refusal);
        // The caller may have given up: then nobody needs to know.
        let _ = self.answer.send(Err(refusal));
    }

    fn truth_of(&self, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::NotLeader | Refusal::Expired | Refusal::Overloaded | Refusal::Closed
                if self.perhaps_appended =>
            {
                Refusal::Unknown("an earlier attempt was not answered")
            }
            refusal => refusal,
        }
    }
}

impl Waiting {
    /// Puts a proposal behind those that have waited for longer than since this moment. Returns its id and where its
    /// answer comes.
    pub(crate) fn enqueue(
        &mut self,
        proposal: Proposal,
        origin: Origin,
        room: Room,
        since: Instant,
        limits: &Limits,
    ) -> Result<(u64, Answer), Refusal> {
        if self.closed {
            return Err(Refusal::Closed);
        }
        if let Room::Before(coming) = room {
            let with_it = self.size + proposal.size() + coming;
            if with_it.requests > limits.waiting_requests_max || with_it.bytes > limits.waiting_bytes_max {
                return Err(Refusal::Overloaded);
            }
        }
        let (answer, answered) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        self.size += proposal.size();
        let caller = Caller { id, origin, since, perhaps_appended: false, answer };
        self.insert(Waiter { proposal, caller });
        Ok((id, answered))
    }

    fn insert(&mut self, waiter: Waiter) {
        let turn = waiter.caller.turn();
        match self.waiters.back().is_none_or(|last| last.caller.turn() < turn) {
            true => self.waiters.push_back(waiter),
            false => {
                let place = self.waiters.partition_point(|other| other.caller.turn() < turn);
                self.waiters.insert(place, waiter);
            }
        }
    }

    /// How many requests wait, and since when the first has that came to this node. How long others waited elsewhere says
    /// nothing of this one.
    pub(crate) fn standing(&self) -> (usize, Option<Instant>) {
        let first = self.waiters.iter().find(|waiter| waiter.caller.origin == Origin::Here);
        (self.size.requests, first.map(|first| first.caller.since))
    }

    /// Whether as much waits as goes together.
    pub(crate) fn fills_an_entry(&self, limits: &Limits) -> bool {
        self.size.requests >= limits.entry_requests_max || self.size.bytes >= limits.entry_bytes_max
    }

    /// Takes no more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// What is said to a caller whose time is over, if it waits here; it then waits no more. None: its
    /// request is under way, and nobody knows yet.
    pub(crate) fn expire(&mut self, id: u64) -> Option<Refusal> {
        let place = self.waiters.iter().position(|waiter| waiter.caller.id == id)?;
        let waiter = self.waiters.remove(place)?;
        self.size -= waiter.proposal.size();
        Some(waiter.caller.truth_of(Refusal::Expired))
    }

    /// As many waiters from the front as fit one entry, and their replies one message, with their
    /// requests put together.
    pub(crate) fn gather(&mut self, limits: &Limits) -> Option<Gathered> {
        let mut gathered: Option<Gathered> = None;
        while let Some(next) = self.waiters.front() {
            let fits =
                gathered.as_ref().is_none_or(|gathered| gathered.proposal.fits_with(&next.proposal, limits));
            if !fits {
                break;
            }
            let Some(Waiter { proposal, caller }) = self.waiters.pop_front() else { break };
            self.size -= proposal.size();
            if caller.answer.is_closed() {
                continue;
            }
            let part = Part { asks: proposal.asks(), bytes: proposal.frames().len(), caller };
            match &mut gathered {
                Some(gathered) => {
                    gathered.proposal.merge(&proposal);
                    gathered.parts.push(part);
                }
                None => gathered = Some(Gathered { proposal, parts: vec![part] }),
            }
        }
        gathered
    }

    /// Puts those of a group that are offered again back to the front, in order, and refuses the others.
    pub(crate) fn give_back(&mut self, group: Group, failure: Failure) {
        let mut rest = group.batch.frames_slice();
        let mut returned = Vec::with_capacity(group.parts.len());
        for mut part in group.parts {
            let (frames, after) = rest.split_at(part.bytes.min(rest.len()));
            rest = after;
            part.caller.perhaps_appended |= matches!(failure, Failure::PerhapsAppended(_));
            match part.refusal(failure) {
                Some(refusal) => part.caller.refuse(refusal),
                None => returned.push(Waiter {
                    proposal: Proposal::from_own_frames(frames, part.asks),
                    caller: part.caller,
                }),
            }
        }
        for waiter in returned {
            self.size += waiter.proposal.size();
            self.insert(waiter);
        }
    }

    /// Refuses what other nodes sent: this one does not lead.
    pub(crate) fn turn_away_peers(&mut self) {
        if self.waiters.iter().all(|waiter| waiter.caller.origin == Origin::Here) {
            return;
        }
        let (here, peers): (VecDeque<Waiter>, VecDeque<Waiter>) =
            self.waiters.drain(..).partition(|waiter| waiter.caller.origin == Origin::Here);
        self.waiters = here;
        for Waiter { proposal, caller } in peers {
            self.size -= proposal.size();
            caller.refuse(Refusal::NotLeader);
        }
    }
}

impl Part {
    /// None: it is offered again.
    fn refusal(&self, failure: Failure) -> Option<Refusal> {
        let here = self.caller.origin == Origin::Here;
        match failure {
            Failure::NotAppended => (!here).then_some(Refusal::NotLeader),
            Failure::Refused(refusal) => Some(refusal),
            // The second attempt of a request with a key finds what the first one did.
            Failure::PerhapsAppended(reason) => {
                (!here || !self.asks.is_keyed()).then_some(Refusal::Unknown(reason))
            }
        }
    }
}

impl Gathered {
    /// Since when the first of it has waited.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.parts.first().map(|first| first.caller.since)
    }

    pub(crate) fn seal(self, at: Millis) -> Group {
        Group { batch: self.proposal.seal(at), parts: self.parts }
    }
}

impl Group {
    /// Whether all of it can be offered again, whatever became of it.
    pub(crate) fn keyed(&self) -> bool {
        self.parts.iter().all(|part| part.asks.is_keyed())
    }

    /// Gives every waiter its replies.
    pub(crate) fn answer(self, mut replies: Vec<Reply>) {
        let expected: usize = self.parts.iter().map(|part| part.asks.requests).sum();
        if replies.len() != expected {
            tracing::error!(expected, actual = replies.len(), "an entry has the wrong number of replies");
            return;
        }
        for part in self.parts {
            let rest = replies.split_off(part.asks.requests);
            // The caller may have given up: then nobody needs to know.
            let _ = part.caller.answer.send(Ok(std::mem::replace(&mut replies, rest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decision::command::{Command, Key, Request, Stamp};
    use crate::decision::reply::Outcome;

    /// Room for so many requests and bytes.
    fn limits(waiting_requests_max: usize, waiting_bytes_max: usize) -> Limits {
        Limits { waiting_requests_max, waiting_bytes_max, ..Limits::default() }
    }

    /// Enqueues where there is so much room.
    fn enqueue_within(waiting: &mut Waiting, room: Room, limits: &Limits) -> Result<(u64, Answer), Refusal> {
        waiting.enqueue(proposal(None), Origin::Here, room, Instant::now(), limits)
    }

    fn proposal(key: Option<&str>) -> Proposal {
        let mut proposal = Proposal::new();
        let key = key.map(|key| Key { key, fingerprint: [0; 16] });
        proposal.push(&Request { key, command: Command::Tick }).expect("it fits");
        proposal
    }

    fn wait_for(waiting: &mut Waiting, key: Option<&str>, origin: Origin) -> (u64, Answer) {
        let limits = Limits::default();
        waiting.enqueue(proposal(key), origin, Room::ALONE, Instant::now(), &limits).expect("there is room")
    }

    fn group(waiting: &mut Waiting) -> Group {
        waiting.gather(&Limits::default()).expect("somebody waits").seal(Millis(0))
    }

    #[test]
    fn groups_that_are_given_back_one_after_the_other_keep_their_order() {
        let mut waiting = Waiting::default();
        let _answers: Vec<_> =
            ["a", "b", "c", "d"].map(|key| wait_for(&mut waiting, Some(key), Origin::Here)).into();
        let limits = Limits { entry_requests_max: 1, ..Limits::default() };
        let groups = [(); 3].map(|()| waiting.gather(&limits).expect("somebody waits").seal(Millis(0)));
        for group in groups {
            waiting.give_back(group, Failure::NotAppended);
        }
        assert_eq!(keys(&group(&mut waiting)), ["a", "b", "c", "d"]);
    }

    #[test]
    fn what_waits_fills_an_entry_by_requests_or_by_bytes() {
        let mut waiting = Waiting::default();
        let (two, bytes) = (2, 2 * proposal(None).size().bytes);
        let by_requests = Limits { entry_requests_max: two, ..Limits::default() };
        let by_bytes = Limits { entry_bytes_max: bytes, ..Limits::default() };
        let mut answers = Vec::new();
        for waits in 0..=two {
            for limits in [&by_requests, &by_bytes] {
                assert_eq!(waiting.fills_an_entry(limits), waits == two, "{waits} wait");
            }
            assert!(!waiting.fills_an_entry(&Limits::default()));
            answers.push(wait_for(&mut waiting, None, Origin::Here));
        }
        // The third one stays.
        let _group = waiting.gather(&by_requests).expect("somebody waits");
        assert!(!waiting.fills_an_entry(&by_requests));
    }

    #[test]
    fn who_has_waited_longest_goes_first_wherever_that_was() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        let ago = |ms| now.checked_sub(Duration::from_millis(ms)).expect("a moment");
        let mut answers = Vec::new();
        for (key, origin, waited_ms) in [
            ("here, 30", Origin::Here, 30),
            ("there, 50", Origin::Peer, 50),
            ("here, 20", Origin::Here, 20),
            ("there, 25", Origin::Peer, 25),
            ("there, 20", Origin::Peer, 20),
        ] {
            let (proposal, limits) = (proposal(Some(key)), Limits::default());
            answers.push(waiting.enqueue(proposal, origin, Room::ALONE, ago(waited_ms), &limits));
        }
        assert_eq!(waiting.standing(), (5, Some(ago(30))), "what others sent waited with them");
        let gathered = waiting.gather(&Limits::default()).expect("they wait");
        assert_eq!(gathered.since(), Some(ago(50)));
        let group = gathered.seal(Millis(1));
        let expected = ["there, 50", "here, 30", "there, 25", "here, 20", "there, 20"];
        assert_eq!(keys(&group), expected);
    }

    fn keys(group: &Group) -> Vec<String> {
        let mut keys = Vec::new();
        group
            .batch
            .each(|_, attempt| keys.push(attempt.request.key.map_or("-", |key| key.key).to_owned()))
            .expect("it can be read");
        keys
    }

    fn reply(revision: u64) -> Reply {
        let stamp = Stamp { index: revision, ..Stamp::default() };
        Reply { stamp, policy: revision, load: 0, replayed: false, outcome: Outcome::PolicyPut { revision } }
    }

    /// Every way to hear that nothing was appended; of one request that is in the queue, under this id.
    type End = (&'static str, fn(&mut Waiting, u64) -> Option<Refusal>, Refusal);
    const ENDS: [End; 5] = [
        ("its time is over", |waiting, id| waiting.expire(id), Refusal::Expired),
        ("the leader has too much", |waiting, _| end(waiting, Refusal::Overloaded), Refusal::Overloaded),
        ("this node is no member", |waiting, _| end(waiting, Refusal::NotLeader), Refusal::NotLeader),
        ("the node stops", |waiting, _| end(waiting, Refusal::Closed), Refusal::Closed),
        (
            "it went and came back, and then its time is over",
            |waiting, id| {
                let group = group(waiting);
                waiting.give_back(group, Failure::NotAppended);
                waiting.expire(id)
            },
            Refusal::Expired,
        ),
    ];

    fn end(waiting: &mut Waiting, refusal: Refusal) -> Option<Refusal> {
        let group = group(waiting);
        waiting.give_back(group, Failure::Refused(refusal));
        None
    }

    #[test]
    fn what_was_never_appended_is_said_not_to_have_been() {
        for (how, end, expected) in ENDS {
            let mut waiting = Waiting::default();
            let (id, mut answer) = wait_for(&mut waiting, Some("k"), Origin::Here);
            let heard = end(&mut waiting, id).or_else(|| answer.try_recv().expect("an answer").err());
            assert_eq!(heard, Some(expected), "{how}");
        }
    }

    #[test]
    fn what_was_perhaps_appended_is_never_said_not_to_have_been() {
        for (how, end, _) in ENDS {
            let mut waiting = Waiting::default();
            let (id, mut answer) = wait_for(&mut waiting, Some("k"), Origin::Here);
            let lost = group(&mut waiting);
            waiting.give_back(lost, Failure::PerhapsAppended("the connection broke"));
            assert!(answer.try_recv().is_err(), "{how}: it is offered again, and nobody is told yet");
            let heard = end(&mut waiting, id).or_else(|| answer.try_recv().expect("an answer").err());
            assert!(matches!(heard, Some(Refusal::Unknown(_))), "{how}: {heard:?}");
        }
    }

    #[test]
    fn what_is_under_way_at_its_deadline_is_not_known_yet() {
        let mut waiting = Waiting::default();
        let (id, _answer) = wait_for(&mut waiting, Some("k"), Origin::Here);
        let under_way = group(&mut waiting);
        assert_eq!(waiting.expire(id), None);
        waiting.give_back(under_way, Failure::NotAppended);
        assert_eq!(waiting.expire(id), Some(Refusal::Expired), "the attempt has told a moment later");
    }

    #[test]
    fn without_a_key_nothing_is_offered_again_once_it_was_perhaps_appended() {
        let mut waiting = Waiting::default();
        let (_, mut keyed) = wait_for(&mut waiting, Some("k"), Origin::Here);
        let (_, mut unkeyed) = wait_for(&mut waiting, None, Origin::Here);
        let (_, mut forwarded) = wait_for(&mut waiting, Some("p"), Origin::Peer);
        let lost = group(&mut waiting);
        assert!(!lost.keyed());
        waiting.give_back(lost, Failure::PerhapsAppended("lost"));
        assert_eq!(unkeyed.try_recv(), Ok(Err(Refusal::Unknown("lost"))));
        assert_eq!(forwarded.try_recv(), Ok(Err(Refusal::Unknown("lost"))), "the other node asks again");
        let again = group(&mut waiting);
        assert_eq!(keys(&again), ["k"]);
        again.answer(vec![reply(1)]);
        assert_eq!(keyed.try_recv(), Ok(Ok(vec![reply(1)])), "the second attempt finds what the first did");
    }

    #[test]
    fn what_was_not_appended_goes_back_in_front_in_order_and_peers_are_turned_away() {
        let mut waiting = Waiting::default();
        let (_, _first) = wait_for(&mut waiting, Some("1"), Origin::Here);
        let (_, mut peer) = wait_for(&mut waiting, Some("2"), Origin::Peer);
        let (_, _third) = wait_for(&mut waiting, None, Origin::Here);
        let taken = group(&mut waiting);
        let (_, _fourth) = wait_for(&mut waiting, Some("4"), Origin::Here);
        let (_, mut late_peer) = wait_for(&mut waiting, Some("5"), Origin::Peer);
        waiting.give_back(taken, Failure::NotAppended);
        waiting.turn_away_peers();
        for answer in [&mut peer, &mut late_peer] {
            assert_eq!(answer.try_recv(), Ok(Err(Refusal::NotLeader)));
        }
        assert_eq!(keys(&group(&mut waiting)), ["1", "-", "4"]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn who_has_given_up_is_not_offered_and_takes_no_room() {
        let mut waiting = Waiting::default();
        let (_, gone) = wait_for(&mut waiting, Some("gone"), Origin::Here);
        let (id, _answer) = wait_for(&mut waiting, Some("here"), Origin::Here);
        drop(gone);
        let taken = group(&mut waiting);
        assert_eq!(keys(&taken), ["here"]);
        waiting.give_back(taken, Failure::NotAppended);
        assert_eq!(waiting.size.requests, 1);
        let full = enqueue_within(&mut waiting, Room::ALONE, &limits(1, 100_000));
        assert_eq!(full.map(|_| ()), Err(Refusal::Overloaded));
        assert_eq!(waiting.expire(id), Some(Refusal::Expired));
        assert_eq!(waiting.size, Size::default());
        waiting.close();
        let closed = enqueue_within(&mut waiting, Room::Begun, &Limits::default());
        assert_eq!(closed.map(|_| ()), Err(Refusal::Closed));
    }

    #[test]
    fn what_is_too_large_for_the_room_is_refused_and_what_has_begun_is_not() {
        let mut waiting = Waiting::default();
        let bytes = proposal(None).size().bytes;
        let limits = limits(10, bytes + 1);
        let beside = enqueue_within(&mut waiting, Room::Before(Size { requests: 1, bytes }), &limits);
        assert_eq!(beside.map(|_| ()), Err(Refusal::Overloaded), "there is no room for what will follow");
        let (_, _first) = enqueue_within(&mut waiting, Room::Before(Size { requests: 9, bytes: 1 }), &limits)
            .expect("there is room");
        let second = enqueue_within(&mut waiting, Room::ALONE, &limits);
        assert_eq!(second.map(|_| ()), Err(Refusal::Overloaded), "two are more bytes than there is room for");
        let (_, _rest) = enqueue_within(&mut waiting, Room::Begun, &limits).expect("it has begun");
        assert_eq!(waiting.size, Size { requests: 2, bytes: 2 * bytes });
        group(&mut waiting);
        assert_eq!(waiting.size, Size::default());
    }

    #[test]
    fn what_is_offered_again_has_waited_since_it_came() {
        let mut waiting = Waiting::default();
        let begun = Instant::now();
        assert_eq!(waiting.standing(), (0, None));
        let later = begun + Duration::from_secs(1);
        let enqueue = |waiting: &mut Waiting, key, since| {
            let answer =
                waiting.enqueue(proposal(Some(key)), Origin::Here, Room::ALONE, since, &Limits::default());
            answer.expect("there is room")
        };
        let _first = enqueue(&mut waiting, "1", begun);
        let under_way = group(&mut waiting);
        let _second = enqueue(&mut waiting, "2", later);
        assert_eq!(waiting.standing(), (1, Some(later)));
        waiting.give_back(under_way, Failure::NotAppended);
        assert_eq!(waiting.standing(), (2, Some(begun)));
    }
}
