//! From a reply of the cluster to an answer: the status, the headers and the body of each outcome.

use axum::http::header::ETAG;
use axum::http::{HeaderMap, HeaderValue, StatusCode};

use crate::decision::reply::{AdmissionId, Outcome, Refusal, Reply};
use crate::edge::answer::Answer;
use crate::edge::headers::{IDEMPOTENCY_REPLAYED, insert_rate_limits, insert_retry_after, revision_tag};
use crate::edge::kind::Kind;
use crate::edge::wire::account::{AccountAnswer, GrantAnswer, GrantRevokedAnswer, ResetAnswer};
use crate::edge::wire::admission::{AdmittedAnswer, Entry, ExtendedAnswer, RefusalAnswer, SettledAnswer};
use crate::edge::wire::evidence::{HoldEnd, Receipt};
use crate::edge::wire::json::{WriteJson, write_object};
use crate::edge::wire::policy::PolicyPutAnswer;
use crate::edge::wire::topup::TopUpAnswer;
use crate::units::Millis;

/// Nothing but the evidence: for an outcome that has no more to say.
struct ReceiptAnswer<'a> {
    receipt: Receipt<'a>,
}

impl WriteJson for ReceiptAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "receipt": self.receipt, });
    }
}

/// How many bytes an entry of a batch usually takes.
const ENTRY_BYTES_USUAL: usize = 1_024;

fn insert_replayed(headers: &mut HeaderMap, replayed: bool) {
    if replayed {
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
}

fn insert_refusal(headers: &mut HeaderMap, now: Millis, refusal: &Refusal) {
    let waiting_helps = matches!(Kind::Refused(refusal.reason).words().status, 429 | 503);
    if waiting_helps || refusal.would_pass_at.is_some() {
        insert_retry_after(headers, now, refusal.would_pass_at);
    }
    insert_rate_limits(headers, now, &refusal.limits);
}

/// The answer to one request. `admission` is the one that the request was about, if any.
pub(crate) fn answer(reply: &Reply, admission: Option<AdmissionId>) -> Answer {
    let now = reply.stamp.at;
    let receipt = Receipt { stamp: &reply.stamp, policy: reply.policy, load: reply.load };
    let mut answer = match &reply.outcome {
        Outcome::Admitted(admitted) => {
            let body = AdmittedAnswer { admitted, entry: Entry::default(), receipt };
            let mut answer = Answer::json(StatusCode::OK, &body);
            insert_rate_limits(&mut answer.headers, now, &admitted.limits);
            answer
        }
        Outcome::Refused(refusal) => {
            let body = RefusalAnswer { refusal, entry: Entry::default(), receipt };
            let mut answer = Answer::problem(Kind::Refused(refusal.reason).words().status_code(), &body);
            insert_refusal(&mut answer.headers, now, refusal);
            answer
        }
        Outcome::Settled(settled) | Outcome::Released(settled) => {
            Answer::json(StatusCode::OK, &SettledAnswer { settled, receipt })
        }
        Outcome::Extended { expires_at } => {
            let hold = HoldEnd(*expires_at);
            Answer::json(StatusCode::OK, &ExtendedAnswer { admission, hold, receipt })
        }
        Outcome::AccountPut(view) => {
            Answer::json(StatusCode::OK, &AccountAnswer { view, moved: None, receipt: Some(receipt) })
        }
        Outcome::GrantPut(grant) => {
            let status = if reply.replayed { StatusCode::OK } else { StatusCode::CREATED };
            Answer::json(status, &GrantAnswer { grant, receipt: Some(receipt) })
        }
        Outcome::GrantRevoked(revoked) => {
            Answer::json(StatusCode::OK, &GrantRevokedAnswer { revoked, receipt })
        }
        Outcome::Reset(done) => Answer::json(StatusCode::OK, &ResetAnswer { done, receipt }),
        Outcome::TopUp(view) => Answer::json(StatusCode::OK, &TopUpAnswer { view, receipt: Some(receipt) }),
        Outcome::PolicyPut { revision } => {
            let body = PolicyPutAnswer { revision: *revision, receipt };
            let mut answer = Answer::json(StatusCode::OK, &body);
            answer.headers.extend(revision_tag(*revision).map(|tag| (ETAG, tag)));
            answer
        }
        Outcome::Ticked | Outcome::Signalled => Answer::json(StatusCode::OK, &ReceiptAnswer { receipt }),
    };
    insert_replayed(&mut answer.headers, reply.replayed);
    answer
}

/// How many entries of a batch are written before others get a turn: a large batch holds nobody up.
const ENTRIES_AT_ONCE: usize = 32;

/// The answer to a batch: each entry as a single answer would be, with its status inside.
pub(crate) async fn batch(replies: &[Reply]) -> Answer {
    let mut body = begin_batch(replies.len());
    for (place, reply) in replies.iter().enumerate() {
        if place % ENTRIES_AT_ONCE == ENTRIES_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        write_entry(&mut body, place, reply);
    }
    end_batch(body, replies)
}

/// The same, all at once.
pub(crate) fn whole_batch(replies: &[Reply]) -> Answer {
    let mut body = begin_batch(replies.len());
    replies.iter().enumerate().for_each(|(place, reply)| write_entry(&mut body, place, reply));
    end_batch(body, replies)
}

fn begin_batch(entries: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(32 + entries * ENTRY_BYTES_USUAL);
    body.extend_from_slice(br#"{"results":["#);
    body
}

fn write_entry(body: &mut Vec<u8>, place: usize, reply: &Reply) {
    if place > 0 {
        body.push(b',');
    }
    let receipt = Receipt { stamp: &reply.stamp, policy: reply.policy, load: reply.load };
    let entry = Entry { is_in_batch: true, replayed: reply.replayed };
    match &reply.outcome {
        Outcome::Admitted(admitted) => AdmittedAnswer { admitted, entry, receipt }.write(body),
        Outcome::Refused(refusal) => RefusalAnswer { refusal, entry, receipt }.write(body),
        // A batch holds admissions alone, and their outcomes are the two above.
        _ => ReceiptAnswer { receipt }.write(body),
    }
}

/// It is replayed where some of its entries were known by their keys, and nothing was done anew.
fn end_batch(mut body: Vec<u8>, replies: &[Reply]) -> Answer {
    body.extend_from_slice(b"]}");
    // What is refused is decided anew, as ever, and changes nothing.
    let is_nothing_new = |reply: &Reply| reply.replayed || matches!(reply.outcome, Outcome::Refused(_));
    let is_known = replies.iter().any(|reply| reply.replayed);
    let mut answer = Answer::with_type(StatusCode::OK, HeaderValue::from_static("application/json"), body);
    insert_replayed(&mut answer.headers, is_known && replies.iter().all(is_nothing_new));
    answer
}
