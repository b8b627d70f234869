//! One client: asks one operation after the other, each until its outcome is known, and looks at every answer.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cli::chance::Chance;
use crate::client::Attempt;

use super::checks::{Place, Violation, adds_up, books, page, place_of, top_ups, violated};
use super::history;
use super::operations::{Belongings, Given, Kind, Operation, below, chance_of, one};
use super::report::Tally;
use super::{Ended, Exercise};

/// How long an operation is asked again and again before the run gives up.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// The pause before a node is asked again, from the first to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How many answers a client keeps to ask for again.
const KEPT_MAX: usize = 64;
/// How many grants and admissions a client remembers.
const REMEMBERED_MAX: usize = 64;
/// Longer answers are cut in what a violation shows.
const SHOWN_BYTES_MAX: usize = 4_096;

/// Reasons that say that the request itself was wrong. Nothing that is asked for here is, unless it is meant to be.
const FAULTS: [&str; 16] = [
    "malformed",
    "invalid",
    "feature_unknown",
    "unit_unknown",
    "unit_repeated",
    "attribute_unknown",
    "attribute_value_unknown",
    "account_unknown",
    "account_invalid",
    "admission_unknown",
    "plan_unknown",
    "grant_invalid",
    "grant_exists",
    "text_invalid",
    "policy_invalid",
    "key_mismatch",
];

/// An answer that is known.
#[derive(Clone, Debug)]
struct Known {
    status: u16,
    replayed: bool,
    body: Bytes,
    value: Value,
    /// What every decision that was asked for by then was behind.
    floor: Place,
    /// Where it was decided; of a batch, each of its admissions.
    decided: Vec<history::Decided>,
}

impl Known {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn reason(&self) -> Option<&str> {
        self.value.get("reason").and_then(Value::as_str)
    }
}

/// Something that was done, and can be asked for again.
#[derive(Clone, Debug)]
struct Done {
    operation: Operation,
    key: String,
    /// The number of the request.
    request: u64,
    first: Known,
}

pub(super) struct Caller {
    exercise: Arc<Exercise>,
    number: u64,
    /// The node that is asked next.
    node: usize,
    has: Belongings,
    kept: VecDeque<Done>,
    pub tally: Tally,
}

impl Caller {
    pub fn new(exercise: Arc<Exercise>, number: u64) -> Caller {
        let node = number as usize;
        Caller {
            exercise,
            number,
            node,
            has: Belongings::default(),
            kept: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    /// Takes step after step, each at its time, until the run ends.
    pub async fn run(mut self) -> Result<Caller, Ended> {
        let interval = self.exercise.interval;
        let mut due = Instant::now() + interval.mul_f64(self.number as f64 / self.exercise.callers as f64);
        let mut step = 0;
        while !self.exercise.is_over() {
            tokio::time::sleep_until(due.into()).await;
            // What was missed while nobody answered is not made up for all at once.
            due = (due + interval).max(Instant::now());
            self.step(step).await?;
            step += 1;
        }
        Ok(self)
    }

    async fn step(&mut self, step: u64) -> Result<(), Ended> {
        let mut chance = chance_of(self.exercise.seed, self.number, step);
        let kind = Kind::draw(&mut chance);
        self.has.now = self.exercise.checks.latest().at;
        let name = format!("{}-{}-{step}", self.exercise.world.run, self.number);
        match kind {
            Kind::Abandon if !self.has.holds.is_empty() => {
                // Nobody will hear of it again: it is left to expire.
                self.has.holds.remove(0);
                self.tally.count(kind, "left");
                Ok(())
            }
            Kind::Repeat => self.repeat(step, &mut chance).await,
            Kind::Mismatch => self.mismatch(step, &mut chance).await,
            kind => match self.exercise.clone().world.draw(kind, &name, &mut chance, &self.has) {
                Some(operation) => self.perform(operation, step, &name).await,
                None => Ok(()),
            },
        }
    }

    /// Carries out operations that are not drawn, in order.
    pub async fn perform_all(&mut self, operations: Vec<Operation>) -> Result<(), Ended> {
        for (place, operation) in operations.into_iter().enumerate() {
            let name = format!("{}-setup-{place}", self.exercise.world.run);
            self.perform(operation, place as u64, &name).await?;
        }
        Ok(())
    }

    // --- asking ---------------------------------------------------------------------------------

    /// Asks until the outcome is known, through one node after the other.
    async fn known(
        &mut self,
        operation: &Operation,
        step: u64,
        key: Option<&str>,
        request: u64,
        again: bool,
    ) -> Result<Known, Ended> {
        let exercise = self.exercise.clone();
        let floor = exercise.checks.latest();
        let attempt = Attempt {
            method: operation.method.clone(),
            path: &operation.path,
            key,
            content_type: operation.content_type(),
            body: Bytes::copy_from_slice(operation.body.as_bytes()),
        };
        let begun = Instant::now();
        let (mut attempts, mut pause) = (Vec::new(), PAUSE_MIN);
        let (attempted, value) = loop {
            let node = self.node % exercise.client.nodes();
            self.node += 1;
            let sent_us = exercise.history.now_us();
            let answer = exercise.client.attempt(node, &attempt).await;
            let status = answer.as_ref().ok().map(|answer| answer.status);
            attempts.push(history::Attempt { node, sent_us, answered_us: exercise.history.now_us(), status });
            match answer {
                Ok(answer) => {
                    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                    let is_overtaken = is_overtaken_in_part(&value);
                    if answer.status != 503 && !is_overtaken {
                        break (answer, value);
                    }
                    let otherwise = if is_overtaken { "overtaken" } else { "unavailable" };
                    self.tally.unavailable(value["reason"].as_str().unwrap_or(otherwise));
                }
                Err(error) => {
                    tracing::debug!(node, error = %error, "no answer");
                    self.tally.unavailable("no_answer");
                }
            }
            if begun.elapsed() > KNOWN_WITHIN {
                let line = self.line(operation, step, key, again, &attempts, None);
                exercise.history.write(&line)?;
                return Err(Ended::Unknown(format!("{} {}", operation.method, operation.path)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        self.tally.attempts += attempts.len() as u64;
        let mut known = Known {
            status: attempted.status,
            replayed: attempted.replayed,
            value,
            body: attempted.body,
            floor,
            decided: Vec::new(),
        };
        let looked = self.look(operation, request, &mut known, again);
        let answer = history::Answer {
            status: known.status,
            reason: known.reason().map(Cow::Borrowed),
            replayed: known.replayed,
            decided: known.decided.clone(),
            as_of: attempted.as_of.map(history::ReadPlace::from),
            sha256: hex(&Sha256::digest(&known.body)),
        };
        let line = self.line(operation, step, key, again, &attempts, Some(answer));
        let room = exercise.history.write(&line)?;
        looked.map_err(|violation| self.seen(violation, operation, key, &known))?;
        if !known.decided.is_empty() {
            exercise.history.decided()?;
        }
        if !room || exercise.checks.decisions() >= super::checks::DECISIONS_MAX {
            exercise.end_full();
        }
        Ok(known)
    }

    /// An operation as the history has it.
    fn line<'a>(
        &self,
        operation: &'a Operation,
        step: u64,
        key: Option<&'a str>,
        again: bool,
        attempts: &'a [history::Attempt],
        answer: Option<history::Answer<'a>>,
    ) -> history::Operation<'a> {
        history::Operation {
            client: self.number,
            step,
            kind: operation.kind.name().into(),
            again,
            key: key.map(Cow::Borrowed),
            method: operation.method.as_str().into(),
            path: operation.path.as_str().into(),
            body: operation.body.as_str().into(),
            attempts: attempts.into(),
            answer,
        }
    }

    /// A violation with what was asked and answered.
    fn seen(&self, violation: Violation, operation: &Operation, key: Option<&str>, known: &Known) -> Ended {
        let shown =
            String::from_utf8_lossy(&known.body[..known.body.len().min(SHOWN_BYTES_MAX)]).into_owned();
        Ended::Violated(Violation(format!(
            "{violation}\n  asked by client {}: {} {} with the key {}: {}\n  answered {}{}: {shown}",
            self.number,
            operation.method,
            operation.path,
            key.unwrap_or("(none)"),
            operation.body,
            known.status,
            if known.replayed { ", replayed" } else { "" },
        )))
    }

    // --- looking --------------------------------------------------------------------------------

    /// What every answer must be like, whatever it is to.
    fn look(
        &self,
        operation: &Operation,
        request: u64,
        known: &mut Known,
        again: bool,
    ) -> Result<(), Violation> {
        if known.status >= 500 {
            violated!("a node failed");
        }
        if known.value.is_null() {
            violated!("an answer is no JSON");
        }
        if operation.must_fail && known.is_success() {
            violated!("what cannot be was done");
        }
        let is_extreme = operation.kind == Kind::Extreme;
        if let Some(reason) = known.reason()
            && !is_extreme
            && !again
            && FAULTS.contains(&reason)
            && !ended_meanwhile(operation.kind, &known.value)
        {
            violated!("a request that is right was found wrong");
        }
        match known.value.get("results").and_then(Value::as_array) {
            Some(results) => {
                for (place, result) in results.iter().enumerate() {
                    adds_up(result)?;
                    let replayed = result.get("replayed").is_some();
                    if again && replayed {
                        // It has the place of the first time.
                        let place = place_of(result)?;
                        known
                            .decided
                            .extend(place.map(|place| history::Decided::new(place, replayed, result)));
                        continue;
                    }
                    // Each admission of a batch is a request of its own.
                    let request = request + 1 + place as u64;
                    let place = self.exercise.checks.decided(request, known.floor, result)?;
                    known.decided.extend(place.map(|place| history::Decided::new(place, replayed, result)));
                }
            }
            None => {
                // A refusal of what was asked before is a new decision, and so is a key for something else.
                let request = if again && !known.replayed { self.exercise.next_number() } else { request };
                if operation.changes() {
                    // What was asked before was decided before.
                    let floor = if again { Place::default() } else { known.floor };
                    let place = self.exercise.checks.decided(request, floor, &known.value)?;
                    let replayed = known.replayed;
                    let decided = place.map(|place| history::Decided::new(place, replayed, &known.value));
                    known.decided.extend(decided);
                }
                adds_up(&known.value)?;
            }
        }
        if known.is_success() {
            self.look_closer(operation, known)?;
        }
        Ok(())
    }

    /// What an answer of its kind must be like.
    fn look_closer(&self, operation: &Operation, known: &Known) -> Result<(), Violation> {
        let value = &known.value;
        match operation.kind {
            Kind::ReadAccount => books(value),
            Kind::ReadLedger => {
                let account = operation.path.split('/').nth(3);
                page(value, account)
            }
            Kind::ReadUsage | Kind::ReadCharges => page(value, None),
            Kind::ListTopUps => top_ups(value),
            Kind::Admit | Kind::Hold if value.get("admission").is_none() => {
                violated!("an admission has no id")
            }
            Kind::DryRun if value.get("admission").is_some() => violated!("a dry run has admitted"),
            Kind::Hold if value.get("hold").is_none() => violated!("a hold has no end"),
            Kind::Report if value.get("verdict").is_none() => violated!("a report is told nothing"),
            Kind::Batch | Kind::KeyedBatch => {
                let asked: Value = serde_json::from_str(&operation.body).unwrap_or_default();
                let count = |of: &Value, name: &str| of[name].as_array().map_or(0, Vec::len);
                if count(&asked, "admissions") != count(value, "results") {
                    violated!("a batch is answered in part");
                }
                Ok(())
            }
            Kind::ReadAdmission => {
                let asked = operation.path.split(['/', '?']).nth(3);
                if value["admission"].as_str() != asked {
                    violated!("another admission was shown");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    // --- what a client does ---------------------------------------------------------------------

    async fn perform(&mut self, operation: Operation, step: u64, name: &str) -> Result<(), Ended> {
        let key = operation.key(name);
        let request = self.exercise.next_number();
        let known = self.known(&operation, step, key, request, false).await?;
        let outcome = match (known.is_success(), known.reason()) {
            (true, _) => "done".to_owned(),
            (false, Some(reason)) => reason.to_owned(),
            (false, None) => known.status.to_string(),
        };
        self.tally.count(operation.kind, &outcome);
        if let Some(results) = known.value.get("results").and_then(Value::as_array) {
            for result in results {
                let outcome = result["reason"].as_str().unwrap_or("done");
                self.tally.count_admission(outcome);
            }
        }
        self.take(&operation, name, &known);
        let undone = known.reason() == Some("hold_resolved");
        if let Some(hold) = operation.hold.as_deref().filter(|_| undone) {
            // Nobody else ends it.
            self.look_up(hold, "expired", step).await?;
        }
        if operation.changes() && known.is_success() && operation.kind != Kind::DryRun {
            if self.kept.len() >= KEPT_MAX {
                self.kept.pop_front();
            }
            let ended = match operation.kind {
                Kind::Settle => Some("settled"),
                Kind::Release => Some("released"),
                _ => None,
            };
            let hold = operation.hold.clone();
            self.kept.push_back(Done { operation, key: name.to_owned(), request, first: known });
            if let (Some(hold), Some(ended)) = (hold, ended) {
                // Read what was just written, through another node.
                self.look_up(&hold, ended, step).await?;
            }
        }
        Ok(())
    }

    /// Takes what an answer gives.
    fn take(&mut self, operation: &Operation, name: &str, known: &Known) {
        let asked: Value = serde_json::from_str(&operation.body).unwrap_or_default();
        let admission = known.value["admission"].as_str().map(str::to_owned);
        let hold = operation.hold.as_deref();
        match (operation.kind, known.is_success()) {
            (Kind::Admit | Kind::Hold, true) => {
                let Some(admission) = admission else { return };
                remember(&mut self.has.admissions, admission.clone());
                if operation.kind == Kind::Hold {
                    self.has.hold(admission, &asked);
                }
            }
            (Kind::Report, true) => self.has.reported(hold.unwrap_or_default(), &asked),
            (Kind::Settle | Kind::Release, true) => self.has.ended(hold.unwrap_or_default()),
            (Kind::Report | Kind::Extend | Kind::Settle | Kind::Release, false)
                if known.reason() == Some("hold_resolved") =>
            {
                self.has.ended(hold.unwrap_or_default());
            }
            (Kind::Purchase | Kind::Promotion | Kind::Adjustment, true) => {
                let account = operation.path.split('/').nth(3).unwrap_or_default().to_owned();
                // The first credits of the pools have names of their own.
                if known.value["id"] == name {
                    remember(&mut self.has.grants, Given { account, id: name.to_owned() });
                }
            }
            (Kind::ListTopUps, true) => {
                let items = known.value["items"].as_array().map_or(&[][..], Vec::as_slice);
                let pending = items.iter().filter(|item| item["status"] == "pending");
                self.has.top_ups = pending.filter_map(|item| Some(item["id"].as_str()?.to_owned())).collect();
            }
            (Kind::ConfirmTopUp, true) => {
                // A payment may be disputed like any other.
                if let (Some(top_up), Some(account)) =
                    (known.value["id"].as_str(), known.value["account"].as_str())
                {
                    let (account, id) = (account.to_owned(), format!("topup:{top_up}"));
                    remember(&mut self.has.grants, Given { account, id });
                }
            }
            _ => {}
        }
    }

    /// Looks an admission up whose state is known.
    async fn look_up(&mut self, admission: &str, status: &str, step: u64) -> Result<(), Ended> {
        let operation = Operation {
            kind: Kind::ReadAdmission,
            method: http::Method::GET,
            // The events are there to be read by others: this is about how it stands.
            path: format!("/v1/admissions/{admission}?events=false"),
            body: String::new(),
            hold: None,
            must_fail: false,
        };
        let request = self.exercise.next_number();
        let known = self.known(&operation, step, None, request, false).await?;
        self.tally.count(Kind::ReadAdmission, "done");
        if known.value["status"] != status {
            let violation = Violation(format!("an admission that is {status} is shown otherwise"));
            return Err(self.seen(violation, &operation, None, &known));
        }
        Ok(())
    }

    /// Asks for something again that was done, with its key and through any node: the answer is the first one.
    async fn repeat(&mut self, step: u64, chance: &mut Chance) -> Result<(), Ended> {
        let place = below(chance, self.kept.len() as u64) as usize;
        match self.kept.get(place).cloned() {
            Some(done) => self.ask_again(&done, step).await,
            None => Ok(()),
        }
    }

    async fn ask_again(&mut self, done: &Done, step: u64) -> Result<(), Ended> {
        let operation = &done.operation;
        if operation.is_batch() {
            return self.ask_batch_again(done, step).await;
        }
        let key = operation.key(&done.key);
        let known = self.known(operation, step, key, done.request, true).await?;
        self.tally.count(Kind::Repeat, "replayed");
        if !known.replayed || !known.is_success() || known.body != done.first.body {
            let first = String::from_utf8_lossy(&done.first.body);
            let violation =
                Violation(format!("asked again, it is not answered as at first, which was {first}"));
            return Err(self.seen(violation, operation, key, &known));
        }
        Ok(())
    }

    /// Those of a batch that were admitted are admitted as they were; what was refused is decided anew where the whole
    /// is asked under its key, and else left out. What was refused when it was last asked for was not done since then.
    async fn ask_batch_again(&mut self, done: &Done, step: u64) -> Result<(), Ended> {
        let asked: Value = serde_json::from_str(&done.operation.body).unwrap_or_default();
        let listed = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
        let first = listed(&done.first.value, "results");
        let is_admitted = |result: &Value| result["status"] == 200;
        let is_whole = done.operation.kind == Kind::KeyedBatch;
        if !is_whole && !first.iter().any(is_admitted) {
            return Ok(());
        }
        let (admissions, first): (Vec<Value>, Vec<Value>) = listed(&asked, "admissions")
            .into_iter()
            .zip(first)
            .filter(|(_, result)| is_whole || is_admitted(result))
            .unzip();
        let body = serde_json::json!({ "admissions": admissions }).to_string();
        let operation = Operation { kind: Kind::Repeat, body, ..done.operation.clone() };
        let key = done.operation.key(&done.key);
        let floor = self.exercise.checks.latest();
        // A number of its own: nothing of what was admitted before may count as decided again.
        let request = self.exercise.next_number();
        let known = self.known(&operation, step, key, request, true).await?;
        self.tally.count(Kind::Repeat, "replayed");
        let again = listed(&known.value, "results");
        let is_right = |(again, first): (&Value, &Value)| {
            let is_replayed = again["replayed"] == true;
            match is_admitted(first) {
                true => {
                    let same = |name: &&str| again[name] == first[name];
                    is_replayed && ["admission", "cost", "paid_by", "receipt"].iter().all(same)
                }
                // An attempt of this time may have done it, and no earlier one.
                false => !is_replayed || place_of(again).is_ok_and(|place| place > Some(floor)),
            }
        };
        if again.len() != first.len() || !again.iter().zip(&first).all(is_right) {
            let violation = Violation(format!(
                "a batch asked again (behind {floor:?}) is not answered as before, which was {}",
                Value::from(first)
            ));
            return Err(self.seen(violation, &operation, key, &known));
        }
        if is_whole && let Some(kept) = self.kept.iter_mut().find(|kept| kept.request == done.request) {
            kept.first = known;
        }
        Ok(())
    }

    /// A key that stands for one thing is not taken for another.
    async fn mismatch(&mut self, step: u64, chance: &mut Chance) -> Result<(), Ended> {
        let kept: Vec<Done> = self.kept.iter().filter(|done| !done.operation.is_batch()).cloned().collect();
        let Some(done) = one(chance, &kept) else { return Ok(()) };
        let other = "\"requests\":1,";
        let operation = match done.operation.body.contains(other) {
            true => {
                let body = done.operation.body.replacen(other, "\"requests\":2,", 1);
                Operation { body, ..done.operation.clone() }
            }
            false => {
                let account = &self.exercise.world.pools[0];
                Operation {
                    kind: Kind::Mismatch,
                    method: http::Method::POST,
                    path: format!("/v1/accounts/{account}/resets"),
                    body: serde_json::json!({"bank": 1, "reason": "another request"}).to_string(),
                    hold: None,
                    must_fail: true,
                }
            }
        };
        let operation = Operation { must_fail: true, ..operation };
        let request = self.exercise.next_number();
        let known = self.known(&operation, step, Some(&done.key), request, true).await?;
        self.tally.count(Kind::Mismatch, known.reason().unwrap_or("none"));
        if known.status != 422 || known.reason() != Some("key_mismatch") {
            let violation = Violation("a key was taken for two requests".into());
            return Err(self.seen(violation, &operation, Some(&done.key), &known));
        }
        Ok(())
    }

    /// Asks again for everything that is kept: nothing that was acknowledged is lost.
    pub async fn check_kept(mut self) -> Result<Caller, Ended> {
        for done in std::mem::take(&mut self.kept) {
            self.ask_again(&done, u64::MAX).await?;
        }
        Ok(self)
    }

    /// Reads accounts, whose books must be in order.
    pub async fn check_books(&mut self) -> Result<usize, Ended> {
        let accounts: Vec<String> = self.exercise.world.accounts().cloned().collect();
        for account in &accounts {
            let operation = Operation {
                kind: Kind::ReadAccount,
                method: http::Method::GET,
                path: format!("/v1/accounts/{account}"),
                body: String::new(),
                hold: None,
                must_fail: false,
            };
            let request = self.exercise.next_number();
            self.known(&operation, u64::MAX, None, request, false).await?;
        }
        Ok(accounts.len())
    }
}

/// Whether it is a promotion whose end came before it: time may be moved on by a day meanwhile.
fn ended_meanwhile(kind: Kind, answer: &Value) -> bool {
    kind == Kind::Promotion && answer["field"] == "expires_at"
}

fn remember<T>(of: &mut Vec<T>, new: T) {
    if of.len() >= REMEMBERED_MAX {
        of.remove(0);
    }
    of.push(new);
}

/// Whether it is the answer to a batch of which some were overtaken by another attempt: they are to be asked again.
fn is_overtaken_in_part(answer: &Value) -> bool {
    let results = answer["results"].as_array();
    results.is_some_and(|results| results.iter().any(|result| result["reason"] == "overtaken"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
