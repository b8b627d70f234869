//! Many wallets at once, amounts at the edge, and the cases of other systems that must not happen here.

use quorate::decision::State;
use quorate::decision::audit::Audit;
use quorate::decision::command::{
    Admit, Change, Command, ConfirmTopUp, Key, Period, PutAccount, PutGrant, PutPolicy, Request, Revoke,
    Source, SpendingCap, Stamp, TopUp,
};
use quorate::decision::facts::{Fact, Why, with_moments};
use quorate::decision::reply::{BalancesView, GrantView, Outcome, Reason, Reply, TopUpId};
use quorate::units::{Credits, MICROS, Millis, Span};

use crate::laws::{Lawful, plain, records, restore};

const START: &str = "2027-01-01T00:00:00Z";

const POLICY: &str = r#"{
    "features": {"code": {"units": ["tokens"], "price": {"tokens": "1"}}},
    "plans": {"plus": {"grants": [{
        "name": "monthly", "credits": "100", "priority": 1, "every": "calendar_month",
        "rollover": {"share": "0.5"}
    }]}}
}"#;

fn start() -> Millis {
    START.parse().expect("a time")
}

fn whole(credits: i64) -> Credits {
    Credits(credits * MICROS)
}

/// A watched state that counts its entries.
struct Watched {
    lawful: Lawful,
    at: Millis,
    index: u64,
}

impl Watched {
    fn new(policy: &str) -> Watched {
        let mut watched = Watched { lawful: Lawful::new(), at: start(), index: 0 };
        let put = watched.ask(Command::PutPolicy(PutPolicy { document: policy, if_revision: None }));
        assert!(matches!(put.outcome, Outcome::PolicyPut { .. }), "{put:?}");
        watched
    }

    fn ask(&mut self, command: Command<'_>) -> Reply {
        self.ask_with(None, command)
    }

    fn ask_with(&mut self, key: Option<Key<'_>>, command: Command<'_>) -> Reply {
        self.index += 1;
        let stamp = Stamp { at: self.at, term: 1, index: self.index, position: 0 };
        self.lawful.apply(stamp, &Request { key, command }).expect("every law holds")
    }

    fn credits(&self, account: &str) -> BalancesView {
        self.lawful.state().account(account).expect("the account is there").credits
    }
}

fn account<'a>(account: &'a str, plan: Option<&'a str>, cap: Option<Credits>) -> Command<'a> {
    let cap = cap.map(|credits| SpendingCap { credits, period: Period::Day });
    Command::PutAccount(PutAccount {
        account,
        plan: plan.map_or(Change::Keep, Change::Set),
        spending_cap: cap.map_or(Change::Keep, Change::Set),
        state: None,
        top_up: Change::Keep,
    })
}

fn grant<'a>(account: &'a str, id: &'a str, credits: Credits) -> Command<'a> {
    Command::PutGrant(PutGrant {
        account,
        id,
        source: Source::Purchase,
        credits,
        priority: 50,
        effective_at: None,
        expires_at: None,
        reason: None,
    })
}

fn admit(account: &str, tokens: u64) -> Command<'_> {
    Command::Admit(Admit {
        account,
        feature: "code",
        usage: vec![("tokens", tokens)],
        attributes: Vec::new(),
        hold_ttl: None,
        dry_run: false,
        list_limits: false,
        endpoint: None,
        region: None,
        class: None,
    })
}

fn refused(reply: &Reply) -> Option<Reason> {
    match &reply.outcome {
        Outcome::Refused(refusal) => Some(refusal.reason),
        _ => None,
    }
}

/// The grant that an answer shows.
fn put(reply: &Reply) -> GrantView {
    match &reply.outcome {
        Outcome::GrantPut(grant) => (**grant).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_grant_that_ended_long_ago_keeps_its_id_and_is_answered_as_before() {
    const GRANTS: usize = 100;
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme", None, None));
    let ids: Vec<String> = (0..GRANTS).map(|number| format!("bought-{number}")).collect();
    let mut ended = Vec::new();
    for id in &ids {
        watched.at = watched.at.saturating_add(Span::MINUTE);
        assert!(!watched.ask(grant("acme", id, whole(2))).replayed);
        assert_eq!(refused(&watched.ask(admit("acme", 2))), None);
        let again = watched.ask(grant("acme", id, whole(2)));
        assert!(again.replayed);
        ended.push(put(&again));
    }
    // The latest are there whole; of the others there is the sum, which the laws compare with the postings.
    let view = watched.lawful.state().account("acme").expect("the account is there");
    assert_eq!((view.grants.len(), view.credits.spent), (32, whole(200)));
    for (id, ended) in ids.iter().zip(&ended) {
        let again = watched.ask(grant("acme", id, whole(2)));
        assert!(again.replayed);
        assert_eq!(put(&again), *ended);
        assert_eq!(refused(&watched.ask(grant("acme", id, whole(3)))), Some(Reason::GrantExists));
        let revoke = Revoke { account: "acme", grant: id, credits: None, reason: "a refund" };
        assert_eq!(refused(&watched.ask(Command::Revoke(revoke))), Some(Reason::GrantShort));
    }
    let revoke = Revoke { account: "acme", grant: "bought-100", credits: None, reason: "a refund" };
    assert_eq!(refused(&watched.ask(Command::Revoke(revoke))), Some(Reason::GrantUnknown));
    assert_eq!(watched.credits("acme").granted, whole(200));
}

#[test]
fn a_parents_cap_is_not_bypassed_by_a_child() {
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme:video:u17", None, None));
    watched.ask(account("acme", None, Some(whole(10))));
    watched.ask(account("acme:video", None, Some(whole(6))));
    for (path, id) in [("acme", "pool"), ("acme:video", "team"), ("acme:video:u17", "own")] {
        watched.ask(grant(path, id, whole(100)));
    }
    // Whoever's wallet pays, the caps of all above bind: 6 beneath the team, 10 in all.
    // More than a whole period allows is never possible; more than is left of it is later.
    assert_eq!(refused(&watched.ask(admit("acme:video:u17", 7))), Some(Reason::QuotaExceeded));
    assert_eq!(refused(&watched.ask(admit("acme:video:u17", 6))), None);
    assert_eq!(refused(&watched.ask(admit("acme:video", 1))), Some(Reason::SpendingCapReached));
    assert_eq!(refused(&watched.ask(admit("acme", 5))), Some(Reason::SpendingCapReached));
    assert_eq!(refused(&watched.ask(admit("acme", 4))), None);
    assert_eq!(watched.credits("acme:video:u17").spent, whole(6));
    assert_eq!(watched.credits("acme").spent, whole(4));
    // Each period has its own.
    watched.at = watched.at.saturating_add(Span::DAY);
    assert_eq!(refused(&watched.ask(admit("acme:video:u17", 6))), None);
}

#[test]
fn unspent_credits_do_not_vanish_at_renewal_when_rollover_says_otherwise() {
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme", Some("plus"), None));
    watched.ask(admit("acme", 60));
    watched.at = "2027-02-01T00:00:00Z".parse().expect("a time");
    watched.ask(Command::Tick);
    let credits = watched.credits("acme");
    let half_of_the_rest = whole(20);
    assert_eq!(credits.available, Credits(whole(100).0 + half_of_the_rest.0));
    assert_eq!((credits.granted, credits.spent, credits.expired), (whole(200), whole(60), whole(20)));
    assert_eq!(refused(&watched.ask(admit("acme", 120))), None);
    assert_eq!(refused(&watched.ask(admit("acme", 1))), Some(Reason::CreditsShort));
}

#[test]
fn two_requests_race_for_the_last_credit_and_one_wins() {
    let mut watched = Watched::new(POLICY);
    for path in ["acme:a", "acme:b"] {
        watched.ask(account(path, None, None));
    }
    watched.ask(grant("acme", "last", whole(1)));
    // In whatever order they were asked, the log has one: at the same moment, from two children.
    assert_eq!(refused(&watched.ask(admit("acme:a", 1))), None);
    assert_eq!(refused(&watched.ask(admit("acme:b", 1))), Some(Reason::CreditsShort));
    let credits = watched.credits("acme");
    assert_eq!((credits.available, credits.spent), (Credits::ZERO, whole(1)));
}

#[test]
fn a_maximum_value_amount_is_refused_or_exact() {
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme", None, None));
    assert_eq!(refused(&watched.ask(grant("acme", "all", Credits::MAX))), None);
    assert_eq!(refused(&watched.ask(grant("acme", "more", Credits(1)))), Some(Reason::GrantInvalid));
    // A plan that would grant beyond what an amount can be is refused, and changes nothing.
    let put = watched.ask(account("acme", Some("plus"), None));
    assert_eq!(refused(&put), Some(Reason::AccountInvalid));
    assert_eq!(watched.lawful.state().account("acme").expect("it is there").plan, None);
    let most = (i64::MAX / MICROS) as u64;
    assert_eq!(refused(&watched.ask(admit("acme", u64::MAX))), Some(Reason::AmountTooLarge));
    assert_eq!(refused(&watched.ask(admit("acme", most + 1))), Some(Reason::AmountTooLarge));
    assert_eq!(refused(&watched.ask(admit("acme", most))), None);
    let credits = watched.credits("acme");
    assert_eq!(credits.spent, whole(most as i64));
    assert_eq!(credits.available, Credits(i64::MAX - credits.spent.0));
}

/// A state with so many accounts on a plan whose months all end at once, and the facts so far.
fn with_accounts(accounts: usize) -> (State, Vec<(u64, Fact)>, u64) {
    let mut state = State::new();
    state.keep_facts(true);
    let mut facts = Vec::new();
    let mut index = 1;
    let mut apply = |state: &mut State, command: Command<'_>| {
        let reply = state.apply(Stamp { at: start(), term: 1, index, position: 0 }, &plain(command));
        assert_eq!(refused(&reply), None);
        facts.extend(state.take_facts().into_iter().map(|fact| (index, fact)));
        index += 1;
    };
    apply(&mut state, Command::PutPolicy(PutPolicy { document: POLICY, if_revision: None }));
    for number in 0..accounts {
        apply(&mut state, account(&format!("u{number}"), Some("plus"), None));
    }
    (state, facts, index)
}

#[test]
fn a_month_that_ends_for_everyone_at_once_is_carried_out_in_bounded_steps() {
    const ACCOUNTS: usize = 200_000;
    let (mut state, mut facts, first) = with_accounts(ACCOUNTS);
    let end: Millis = "2027-02-01T00:00:00Z".parse().expect("a time");
    let at = end.saturating_add(Span::SECOND);
    let mut index = first;
    let mut apply = |state: &mut State, command: Command<'_>| {
        let reply = state.apply(Stamp { at, term: 1, index, position: 0 }, &plain(command));
        assert_eq!(refused(&reply), None, "{reply:?}");
        let new = state.take_facts();
        let made = new.iter().filter(|fact| matches!(fact, Fact::GrantMade(_))).count();
        for (moment, fact) in with_moments(&new) {
            if let Fact::Posting(posting) = fact {
                let due = posting.why != Why::Drawn;
                assert_eq!(moment.at, if due { end } else { at }, "{posting:?}");
            }
        }
        facts.extend(new.into_iter().map(|fact| (index, fact)));
        index += 1;
        made
    };
    // The last account asks first: its month is renewed before it is decided, the others' in their turn.
    let last = format!("u{}", ACCOUNTS - 1);
    let made = apply(&mut state, admit(&last, 150));
    // A month takes two: it is renewed, and what is left of the old one ends.
    const MONTHS_PER_ENTRY: usize = State::DUE_PER_ENTRY_MAX / 2;
    assert_eq!(made, MONTHS_PER_ENTRY + 1);
    assert!(state.is_overdue());
    // A copy from a checkpoint goes on with just the same.
    let mut copy = restore(records(&state)).expect("a state");
    let mut entries = 1;
    while state.is_overdue() {
        let made = apply(&mut state, Command::Tick);
        assert!(made <= MONTHS_PER_ENTRY);
        entries += 1;
        copy.apply(Stamp { at, term: 1, index: first + entries - 1, position: 0 }, &plain(Command::Tick));
    }
    assert_eq!(entries, (ACCOUNTS - 1).div_ceil(MONTHS_PER_ENTRY) as u64);
    assert_eq!(state.check(), Ok(()));
    assert!(records(&copy) == records(&state), "a restored state becomes another");
    assert_eq!(state.account("u0").expect("an account").credits.available, whole(150));
    assert_eq!(state.account(&last).expect("an account").credits.available, Credits::ZERO);
    let mut audit = Audit::new();
    for (index, fact) in &facts {
        audit.take(*index, fact);
    }
    assert_eq!((audit.finish(), audit.findings()), (0, &[][..]));
}

#[test]
fn holds_that_end_for_everyone_at_once_are_ended_in_bounded_steps_and_time_waits_for_them() {
    const GRANTS: usize = 200;
    const HOLDS: usize = 100;
    let policy = r#"{"features": {"code": {"units": ["tokens"], "price": {"tokens": "1"},
        "capacity": [{"name": "at_once", "algorithm": "slots", "quota": "100"}]}}}"#;
    let mut state = State::new();
    state.keep_facts(true);
    let (mut facts, mut index) = (Vec::new(), 0);
    let mut apply = |state: &mut State, at: Millis, command: Command<'_>| {
        index += 1;
        let reply = state.apply(Stamp { at, term: 1, index, position: 0 }, &plain(command));
        let new = state.take_facts();
        facts.extend(new.iter().cloned().map(|fact| (index, fact)));
        (reply, new)
    };
    apply(&mut state, start(), Command::PutPolicy(PutPolicy { document: policy, if_revision: None }));
    fn hold(account: &str, tokens: u64) -> Command<'_> {
        match admit(account, tokens) {
            Command::Admit(admit) => Command::Admit(Admit { hold_ttl: Some(Span::HOUR), ..admit }),
            other => other,
        }
    }
    for number in 0..HOLDS {
        let path = format!("u{number}");
        apply(&mut state, start(), account(&path, None, None));
        for number in 0..GRANTS {
            apply(&mut state, start(), grant(&path, &format!("g{number}"), whole(1)));
        }
        assert_eq!(refused(&apply(&mut state, start(), hold(&path, GRANTS as u64)).0), None);
    }
    let end = start().saturating_add(Span::HOUR);
    let later = end.saturating_add(Span::HOUR);
    // As many as one entry ends, and no more; the time waits where they end.
    let per_entry = State::PAID_BACK_PER_ENTRY_MAX.div_ceil(GRANTS + 1);
    let (_, new) = apply(&mut state, later, Command::Tick);
    let ended = |facts: &[Fact]| facts.iter().filter(|fact| matches!(fact, Fact::Usage(_))).count();
    assert_eq!(ended(&new), per_entry);
    assert!(state.is_overdue());
    assert_eq!(state.now(), end);
    // What is decided meanwhile is decided then: with the slots that are free by now.
    let mut copy = restore(records(&state)).expect("a state");
    let (reply, new) = apply(&mut state, later, hold("u0", 1));
    let again = copy.apply(reply.stamp, &plain(hold("u0", 1)));
    assert_eq!((refused(&reply), reply.stamp.at, &again), (None, end, &reply));
    assert_eq!(ended(&new), per_entry + 1);
    let mut entries = 2;
    while state.is_overdue() {
        let (_, new) = apply(&mut state, later, Command::Tick);
        assert!(ended(&new) <= per_entry);
        entries += 1;
    }
    assert_eq!((entries, state.now()), (HOLDS.div_ceil(per_entry), later));
    assert_eq!((state.check(), state.counts().holds), (Ok(()), 0));
    let mut audit = Audit::new();
    for (index, fact) in &facts {
        audit.take(*index, fact);
    }
    assert_eq!((audit.finish(), audit.findings()), (0, &[][..]));
}

/// Accounts whose top-ups wait for the next month, more of them than one entry looks at.
#[test]
fn a_month_that_turns_for_all_who_wait_for_a_top_up_is_carried_out_in_bounded_steps() {
    const ACCOUNTS: usize = 2 * State::DUE_PER_ENTRY_MAX + 1;
    let mut state = State::new();
    state.keep_facts(true);
    let mut audit = Audit::new();
    let mut index = 0;
    let mut apply = |state: &mut State, at: Millis, command: Command<'_>| {
        index += 1;
        let reply = state.apply(Stamp { at, term: 1, index, position: 0 }, &plain(command));
        let facts = state.take_facts();
        facts.iter().for_each(|fact| audit.take(index, fact));
        facts.iter().filter(|fact| matches!(fact, Fact::TopUpRaised(_))).count()
            + usize::from(refused(&reply).is_some()) * ACCOUNTS
    };
    // One micro is paid, and with it the cap of the month is used up.
    let rule = TopUp {
        threshold: Credits(5),
        target: Credits(10),
        monthly_cap: Some(Credits(1)),
        bridge: Credits::ZERO,
    };
    for number in 0..ACCOUNTS {
        let path = format!("a{number}");
        let put = PutAccount {
            account: &path,
            plan: Change::Keep,
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Set(rule),
        };
        assert_eq!(apply(&mut state, start(), Command::PutAccount(put)), 1);
        let (id, credits) = (TopUpId(number as u64 + 1), None);
        let confirm = ConfirmTopUp { id, credits, reason: None };
        assert_eq!(apply(&mut state, start(), Command::ConfirmTopUp(confirm)), 0);
    }
    let turned = "2027-02-01T00:00:00Z".parse().expect("a time");
    let raised: Vec<usize> = (0..4).map(|_| apply(&mut state, turned, Command::Tick)).collect();
    assert_eq!(raised, [State::DUE_PER_ENTRY_MAX, State::DUE_PER_ENTRY_MAX, 1, 0]);
    assert!(!state.is_overdue());
    state.check().expect("what must hold");
    assert_eq!(audit.finish(), 0, "{:?}", audit.findings());
    assert_eq!(records(&restore(records(&state)).expect("a state")), records(&state));
}

#[test]
fn what_is_for_later_is_scheduled_and_becomes_available_in_its_moment() {
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme", None, None));
    watched.ask(grant("acme", "now", whole(5)));
    let later = Millis(watched.at.0 + 1_000);
    let Command::PutGrant(put_later) = grant("acme", "later", whole(7)) else {
        unreachable!("it is a grant")
    };
    let for_later = Command::PutGrant(PutGrant { effective_at: Some(later), ..put_later });
    let told = |credits: BalancesView| (credits.available, credits.scheduled);
    let made = put(&watched.ask(for_later.clone()));
    assert_eq!(told(made.credits), (Credits::ZERO, whole(7)));

    watched.at = Millis(later.0 - 1);
    let refusal = watched.ask(admit("acme", 6));
    assert_eq!(refused(&refusal), Some(Reason::CreditsShort));
    let Outcome::Refused(refusal) = refusal.outcome else { unreachable!("it was refused") };
    assert_eq!(told(watched.credits("acme")), (whole(5), whole(7)));
    assert_eq!(refusal.available, Some(watched.credits("acme").available), "one word, one amount");

    watched.at = later;
    let again = put(&watched.ask(for_later));
    assert_eq!(told(again.credits), (whole(7), Credits::ZERO));
    assert_eq!(told(watched.credits("acme")), (whole(12), Credits::ZERO));
    let admitted = watched.ask(admit("acme", 6));
    let Outcome::Admitted(admitted) = &admitted.outcome else { panic!("{admitted:?}") };
    assert_eq!(admitted.available, watched.credits("acme").available);
}

#[test]
fn what_is_done_again_under_another_key_is_answered_again_and_that_key_is_taken() {
    let mut watched = Watched::new(POLICY);
    watched.ask(account("acme", None, None));
    let made = watched.ask(grant("acme", "bought", whole(5)));
    assert!(!made.replayed);
    let key = Key { key: "another", fingerprint: [1; 16] };
    let again = watched.ask_with(Some(key), grant("acme", "bought", whole(5)));
    assert!(again.replayed, "{again:?}");
    let other = Key { fingerprint: [2; 16], ..key };
    let reply = watched.ask_with(Some(other), grant("acme", "more", whole(5)));
    assert_eq!(refused(&reply), Some(Reason::KeyMismatch));
    assert_eq!(watched.credits("acme").available, whole(5));
}
