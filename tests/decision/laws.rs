//! The laws: what holds for every command, whatever it is and whatever state it meets.
//!
//! A [`Lawful`] state answers like the state within it, and checks at each command that
//! 1. what must always hold holds after it ([`State::check`]);
//! 2. a state restored from a checkpoint taken just before answers the same and becomes the same;
//! 3. a refused command, and a dry run, changed nothing that time alone would not have changed, but for
//!    the trail of the account whose refusal is a fact, and for who asked for what;
//! 4. a dry run says what the real request then answers;
//! 5. a command sent again with its key gets the first answer, marked as replayed, and changes nothing; one that repeats
//!    what was done, such as a grant or a confirmation, changes nothing but that its key is kept;
//! 6. who pays adds up to what it costs;
//! 7. a request refused until a moment passes its layers at that moment, if nothing else happens, and
//!    where one guard refused that is neither moved nor shared, not a millisecond before; of what load moves
//!    nothing is said, since it may move it meanwhile;
//! 8. the facts that it leaves are what a restored state leaves, nothing for a dry run or a replay, and for a
//!    refused admission one usage with why it was refused and what was looked at;
//! 9. an attempt under its key that was taken before it was refused is overtaken and changes nothing, in a restored state,
//!    too;
//! 10. an audit of all facts so far finds nothing, and gives the accounts, grants and holds that the state
//!     shows.

use quorate::decision::audit::{Audit, Finding};
use quorate::decision::command::{Admit, Attempt, Command, Request, Stamp};
use quorate::decision::facts::{Fact, UsageOutcome, with_moments};
use quorate::decision::policy::{Document, FeatureDocument};
use quorate::decision::reply::{Admitted, Layer, Outcome, Payment, Reason, Refusal, Reply};
use quorate::decision::{Record, Restore, State, View};
use quorate::units::{Credits, Millis};

/// A state that is watched.
pub struct Lawful {
    state: State,
    /// All facts so far, with the entry that left each.
    facts: Vec<(u64, Fact)>,
    audit: Audit,
}

impl Lawful {
    pub fn new() -> Lawful {
        let mut state = State::new();
        state.keep_facts(true);
        Lawful { state, facts: Vec::new(), audit: Audit::new() }
    }

    pub fn facts(&self) -> &[(u64, Fact)] {
        &self.facts
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Applies a command.
    ///
    /// # Errors
    /// The law that was broken.
    pub fn apply(&mut self, stamp: Stamp, request: &Request<'_>) -> Result<Reply, String> {
        let before = records(&self.state);
        let reply = self.state.apply(stamp, request);
        self.state.check()?;
        let after = records(&self.state);
        let facts = self.state.take_facts();

        let mut restored = restore(before.clone())?;
        restored.keep_facts(true);
        same("a restored state answers the same", &restored.apply(stamp, request), &reply)?;
        same("a restored state becomes the same", &records(&restored), &after)?;
        same("a restored state leaves the same facts", &restored.take_facts(), &facts)?;

        let mut idle = restore(before.clone())?;
        idle.keep_facts(true);
        idle.apply(stamp, &plain(Command::Tick));
        let refused = matches!(reply.outcome, Outcome::Refused(_));
        let dry_run = matches!(&request.command, Command::Admit(admit) if admit.dry_run);
        // What its own contents repeat is answered under any key, and that key is kept with the answer.
        let decided_here = (reply.stamp.index, reply.stamp.position) == (stamp.index, stamp.position);
        let keeps_a_key = reply.replayed && decided_here && request.key.is_some();
        if keeps_a_key {
            let mut unkeyed = restore(before.clone())?;
            unkeyed.keep_facts(true);
            let again = unkeyed.apply(stamp, &plain(request.command.clone()));
            same("what was done before is answered the same without a key", &again, &reply)?;
            same("what was done before changes nothing", &records(&idle), &records(&unkeyed))?;
            same("what was done before leaves no facts", &unkeyed.take_facts(), &idle.take_facts())?;
        } else if refused || dry_run || reply.replayed {
            let law = "what is refused, tried or replayed changes nothing";
            same(law, &without_trail(records(&idle)), &without_trail(after.clone()))?;
            leaves_at_most_a_refusal(&reply, request, idle.facts(), &facts)?;
        }
        if dry_run || (reply.replayed && !keeps_a_key) {
            same("what is tried or replayed leaves no trail", &records(&idle), &after)?;
        }
        self.audit(stamp, facts)?;
        if let (Outcome::Admitted(admitted), Command::Admit(admit), true) =
            (&reply.outcome, &request.command, dry_run)
        {
            let real = Command::Admit(Admit { dry_run: false, ..admit.clone() });
            match restore(before.clone())?.apply(stamp, &plain(real)).outcome {
                Outcome::Admitted(real) => {
                    let real = Box::new(Admitted { id: admitted.id, dry_run: true, ..*real });
                    same("a dry run says what happens", admitted, &real)?;
                }
                other => return Err(format!("a dry run passed, and the real request: {other:?}")),
            }
        }
        if request.key.is_some() && !refused && !dry_run {
            let again = self.state.apply(stamp, request);
            same("a key gets the first answer again", &again, &Reply { replayed: true, ..reply.clone() })?;
            same("a key replayed changes nothing", &records(&self.state), &after)?;
            same("a key replayed leaves no facts", &self.state.take_facts(), &Vec::new())?;
        }
        if request.key.is_some() && refused && !dry_run {
            self.overtakes(&after, stamp, request, &reply)?;
        }
        adds_up(&reply.outcome)?;
        if let (Outcome::Refused(refusal), Command::Admit(admit)) = (&reply.outcome, &request.command) {
            self.passes_when_it_says(&before, stamp, refusal, admit)?;
        }
        Ok(reply)
    }

    /// Looks at what becomes of attempts that were under way when one was refused.
    fn overtakes(
        &self,
        after: &[Record],
        stamp: Stamp,
        request: &Request<'_>,
        reply: &Reply,
    ) -> Result<(), String> {
        let reason_of = |reply: &Reply| match &reply.outcome {
            Outcome::Refused(refusal) => Some(refusal.reason),
            _ => None,
        };
        // That the key stands for something else is no end of it.
        let expected = reason_of(reply)
            .map(|reason| if reason == Reason::KeyMismatch { reason } else { Reason::Overtaken });
        let next = Stamp { index: stamp.index + 1, ..stamp };
        for before in [1, stamp.index] {
            let mut late = restore(after.to_vec())?;
            late.keep_facts(true);
            let attempt = Attempt { taken: stamp.index - before, request: request.clone() };
            let told = late.apply_attempt(next, &attempt);
            same("who was taken before a refusal is overtaken", &reason_of(&told), &expected)?;
            same("what is overtaken changes nothing", &records(&late), &after.to_vec())?;
            same("what is overtaken leaves no facts", &late.take_facts(), &Vec::new())?;
        }
        let attempt = Attempt { taken: stamp.index, request: request.clone() };
        let told = restore(after.to_vec())?.apply_attempt(next, &attempt);
        let law = "who was taken behind a refusal is decided";
        same(law, &(reason_of(&told) == Some(Reason::Overtaken)), &false)
    }

    /// Audits the facts of one more command, and compares every account.
    fn audit(&mut self, stamp: Stamp, facts: Vec<Fact>) -> Result<(), String> {
        for fact in &facts {
            self.audit.take(stamp.index, fact);
            if let Fact::AccountMade(made) = fact {
                same(
                    "an account has its number",
                    &self.state.account_number(&made.path),
                    &Some(made.account),
                )?;
            }
        }
        self.facts.extend(facts.into_iter().map(|fact| (stamp.index, fact)));
        self.audit.finish();
        compare(&mut self.audit, &self.state.view());
        let found: Vec<String> = self.audit.findings().iter().map(Finding::to_string).collect();
        if found.is_empty() { Ok(()) } else { Err(format!("the audit finds {}", found.join("; "))) }
    }

    fn passes_when_it_says(
        &self,
        before: &[Record],
        stamp: Stamp,
        refusal: &Refusal,
        admit: &Admit<'_>,
    ) -> Result<(), String> {
        let Some(passes_at) = refusal.would_pass_at else { return Ok(()) };
        let (_, policy) = self.state.policy();
        // Where load moves limits it may move them meanwhile.
        if policy.features.values().any(|feature| feature.load.is_some()) {
            return Ok(());
        }
        let now = self.state.now();
        if passes_at <= now {
            return Err(format!("refused at {now}, but says that it passes at {passes_at}"));
        }
        let request = plain(Command::Admit(Admit { dry_run: true, ..admit.clone() }));
        let ask =
            |at: Millis| Ok::<_, String>(restore(before.to_vec())?.apply(Stamp { at, ..stamp }, &request));
        let grants_end = self.grants_end_by(admit.account, passes_at);
        let held = self.state.counts().holds > 0;
        match ask(passes_at)?.outcome {
            Outcome::Admitted(_) => {}
            // What expires until then may be missing then.
            Outcome::Refused(later) if grants_end && of_wallets(&later) => {}
            // A hold that ends with more reported than reserved takes more on its way.
            Outcome::Refused(later) if held && later.reason != Reason::SlotsTaken => {}
            other => return Err(format!("{refusal:?} should pass at {passes_at}, but: {other:?}")),
        }
        let by_one_guard = matches!(refusal.layer, Layer::Limit { .. }) && !held && is_exact(policy);
        if by_one_guard && matches!(ask(Millis(passes_at.0 - 1))?.outcome, Outcome::Admitted(_)) {
            return Err(format!("{refusal:?} should not pass before {passes_at}"));
        }
        Ok(())
    }

    fn grants_end_by(&self, account: &str, at: Millis) -> bool {
        let ends = account.char_indices().filter(|(_, c)| *c == ':').map(|(place, _)| place);
        ends.chain([account.len()])
            .filter_map(|end| self.state.account(&account[..end]))
            .flat_map(|view| view.grants)
            .any(|grant| grant.expires_at.is_some_and(|expires_at| expires_at <= at))
    }
}

/// Whether no limit moves and nobody shares one: else a moment may be told later than it need be.
fn is_exact(policy: &Document) -> bool {
    let shared = |feature: &FeatureDocument| feature.fair || feature.shares.is_some();
    let mut limits = policy.plans.values().flat_map(|plan| &plan.limits);
    !policy.features.values().any(shared) && !limits.any(|limit| limit.adaptive.is_some())
}

fn of_wallets(refusal: &Refusal) -> bool {
    matches!(refusal.layer, Layer::Credits | Layer::SpendingCap { .. })
}

/// Compares all that a state shows with what an audit's facts give.
pub fn compare(audit: &mut Audit, view: &View) {
    audit.compare_state(&view.shown());
    view.shown_accounts(0).for_each(|(_, account)| audit.compare_account(&account));
    view.shown_holds(0).for_each(|(_, hold)| audit.compare_hold(&hold));
    audit.finish_comparing();
}

/// A refused admission is recorded once; other refusals, dry runs and replays are not.
fn leaves_at_most_a_refusal(
    reply: &Reply,
    request: &Request<'_>,
    of_time: &[Fact],
    facts: &[Fact],
) -> Result<(), String> {
    let law = "a refused admission leaves one usage more than time does";
    let dated = |facts: &[Fact]| with_moments(facts).map(|(_, fact)| fact.clone()).collect::<Vec<_>>();
    let (mut facts, of_time) = (dated(facts), dated(of_time));
    let decided = match (&reply.outcome, &request.command) {
        (Outcome::Refused(refusal), Command::Admit(admit)) => {
            !admit.dry_run && refusal.reason != Reason::KeyMismatch
        }
        _ => false,
    };
    let recorded = matches!(&reply.outcome, Outcome::Refused(refusal) if refusal.recorded);
    same("what is on record says so", &recorded, &decided)?;
    if decided {
        if matches!(facts.last(), Some(Fact::Layers(_))) {
            facts.pop();
        }
        match (facts.pop(), &reply.outcome) {
            (Some(Fact::Refused(refused)), Outcome::Refused(refusal)) => {
                same(law, &refused.by, &refusal.layer)?;
                let waits = refusal.would_pass_at.map(|at| at.since(reply.stamp.at));
                same(law, &refused.would_pass_in, &waits)?;
            }
            (other, _) => return Err(format!("{law}: {other:?}")),
        }
        match (facts.pop(), &reply.outcome) {
            (Some(Fact::Usage(usage)), Outcome::Refused(refusal)) => {
                same(law, &usage.outcome, &UsageOutcome::Refused(refusal.reason))?;
            }
            (other, _) => return Err(format!("{law}: {other:?}")),
        }
    }
    same(law, &facts, &of_time)
}

fn without_trail(mut records: Vec<Record>) -> Vec<Record> {
    records.retain(|record| !record.is_of_asking());
    records
}

/// A request without a key.
pub fn plain(command: Command<'_>) -> Request<'_> {
    Request { key: None, command }
}

pub fn records(state: &State) -> Vec<Record> {
    state.view().records().collect()
}

pub fn restore(records: Vec<Record>) -> Result<State, String> {
    let mut restore = Restore::new();
    for record in records {
        restore.push(record).map_err(|error| error.to_string())?;
    }
    restore.finish().map_err(|error| error.to_string())
}

pub fn sum(payments: &[Payment]) -> Credits {
    Credits(payments.iter().map(|payment| payment.credits.0).sum())
}

fn adds_up(outcome: &Outcome) -> Result<(), String> {
    let (payments, paid) = match outcome {
        Outcome::Admitted(admitted) => (&admitted.paid_by, admitted.cost),
        Outcome::Settled(settled) | Outcome::Released(settled) => {
            (&settled.paid_by, Credits(settled.cost.0 - settled.uncovered.0))
        }
        _ => return Ok(()),
    };
    if payments.iter().any(|payment| payment.credits <= Credits::ZERO) {
        return Err(format!("a payment of nothing or less: {outcome:?}"));
    }
    same("who pays adds up to what it costs", &sum(payments), &paid)
}

fn same<T: PartialEq + std::fmt::Debug>(law: &str, left: &T, right: &T) -> Result<(), String> {
    if left == right { Ok(()) } else { Err(format!("{law}:\n  left {left:?}\n right {right:?}")) }
}
