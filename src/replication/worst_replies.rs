//! The largest replies that a state can be made to give, held against what their requests weigh.

use crate::decision::State;
use crate::decision::command::{
    Admit, Change, Command, ConfirmTopUp, FailTopUp, Key, PutAccount, PutGrant, PutPolicy, REASON_BYTES_MAX,
    Release, Request, Reset, ResetBy, Revoke, Settle, Source, SpendingCap, Stamp, TopUp, TopUpDelivered,
};
use crate::decision::command::{Extend, Period};
use crate::decision::reply::{AdmissionId, Outcome, Reply, TopUpId};
use crate::replication::record;
use crate::replication::settings::Limits;
use crate::units::{Credits, Millis, Span};

/// As long as names can be.
fn name(prefix: &str) -> String {
    format!("{prefix:x<64}")
}

fn grant_id(level: usize, place: usize) -> String {
    format!("{:x<128}", format!("{level}-{place:03}-"))
}

fn path(levels: usize) -> String {
    (1..=levels).map(|level| name(&level.to_string())).collect::<Vec<_>>().join(":")
}

/// A feature that is counted by as many limits as can be, and a plan for every level.
fn policy() -> String {
    let limit = |number: usize, unit: &str, then: &str| {
        serde_json::json!({"name": name(&format!("l{number:02}")), "unit": unit, "quota": "9000000000000",
            "algorithm": "token_bucket", "window": "400d", "then": then})
    };
    let units: Vec<String> = (0..8).map(|place| name(&format!("u{place}"))).collect();
    let price: serde_json::Map<_, _> = units.iter().map(|unit| (unit.clone(), "1".into())).collect();
    let guards = |count: usize| -> Vec<_> {
        (0..count).map(|number| limit(number, &units[number % units.len()], "refuse")).collect()
    };
    serde_json::json!({
        "features": {name("f"): {"units": units, "price": price, "capacity": guards(8)}},
        "plans": {name("p"): {"limits": guards(32)}},
    })
    .to_string()
}

struct Worst {
    state: State,
    index: u64,
}

impl Worst {
    /// Applies a command, and checks that its reply is no larger than said before. How large both are.
    fn apply(&mut self, command: Command<'_>) -> (Reply, usize, usize) {
        self.index += 1;
        let stamp = Stamp {
            at: Millis(1 << 45),
            term: u64::MAX,
            index: u64::MAX / 2 + self.index,
            position: u32::MAX,
        };
        let reply_bytes_max = command.reply_bytes_max();
        let reply = self.state.apply(stamp, &Request { key: None, command: command.clone() });
        let bytes = record::encode(&reply).expect("it encodes").len();
        assert!(bytes <= reply_bytes_max, "{bytes} of {reply_bytes_max} bytes: {command:?}");
        (reply, bytes, reply_bytes_max)
    }

    fn with_as_many_grants_as_can_be() -> Worst {
        let mut worst = Worst { state: State::new(), index: 0 };
        let policy = policy();
        let put = Command::PutPolicy(PutPolicy { document: &policy, if_revision: None });
        let (reply, ..) = worst.apply(put);
        assert!(matches!(reply.outcome, Outcome::PolicyPut { .. }), "{reply:?}");
        for level in 1..=4 {
            worst.put_account(level);
            for place in 0..256 {
                let (account, id) = (path(level), grant_id(level, place));
                let (reply, ..) = worst.apply(Command::PutGrant(PutGrant {
                    account: &account,
                    id: &id,
                    source: Source::Promotion,
                    credits: Credits(1_000_000),
                    priority: u32::MAX,
                    effective_at: None,
                    expires_at: Some(Millis(1 << 46)),
                    reason: Some("an outage"),
                }));
                assert!(matches!(reply.outcome, Outcome::GrantPut(_)), "{reply:?}");
            }
        }
        worst
    }

    fn put_account(&mut self, level: usize) -> (Reply, usize, usize) {
        let (account, plan) = (path(level), name("p"));
        self.apply(Command::PutAccount(PutAccount {
            account: &account,
            plan: Change::Set(&plan),
            spending_cap: Change::Set(SpendingCap { credits: Credits::MAX, period: Period::Year }),
            state: None,
            top_up: Change::Keep,
        }))
    }

    /// Asks for so many of the first unit: each costs a credit, and a grant has one.
    fn admit(&mut self, quantity: u64, hold_ttl: Option<Span>, dry_run: bool) -> (Reply, usize, usize) {
        let (account, feature, unit) = (path(4), name("f"), name("u0"));
        self.apply(Command::Admit(Admit {
            account: &account,
            feature: &feature,
            usage: vec![(&unit, quantity)],
            attributes: vec![],
            hold_ttl,
            dry_run,
            list_limits: true,
            endpoint: None,
            region: None,
            class: None,
        }))
    }
}

#[test]
fn no_reply_is_larger_than_what_was_asked_lets_it_be() {
    let mut worst = Worst::with_as_many_grants_as_can_be();
    let (reply, bytes, bytes_max) = worst.admit(1024, None, true);
    assert!(matches!(reply.outcome, Outcome::Admitted(_)), "{reply:?}");
    // What is said before is not far from what can be.
    assert!(bytes * 3 / 2 > bytes_max, "{bytes} of {bytes_max} bytes");
    let (reply, ..) = worst.admit(2_000, None, false);
    assert!(matches!(reply.outcome, Outcome::Refused(_)), "{reply:?}");

    for quantity in [1; 8].into_iter().chain([1000]) {
        let (reply, ..) = worst.admit(quantity, Some(Span::HOUR), false);
        assert!(matches!(reply.outcome, Outcome::Admitted(_)), "{reply:?}");
    }
    worst.put_account(1);
    let unit = name("u0");
    for (last, quantity) in [(false, 900), (true, 1_010)] {
        let settle = Settle {
            admission: AdmissionId(9),
            usage: vec![(&unit, quantity)],
            compute_ms: None,
            duration_ms: None,
            last,
        };
        let (reply, ..) = worst.apply(Command::Settle(settle));
        assert!(matches!(reply.outcome, Outcome::Settled(_)), "{reply:?}");
    }
    worst.apply(Command::Extend(Extend { admission: AdmissionId(8), ttl: Span::HOUR }));
    for id in 1..=9 {
        worst.apply(Command::Release(Release { admission: AdmissionId(id) }));
    }
    let (account, grant) = (path(4), grant_id(4, 255));
    let (reply, ..) = worst.apply(Command::PutGrant(PutGrant {
        account: &account,
        id: &name("again"),
        source: Source::Adjustment,
        credits: Credits(1_000_000),
        priority: u32::MAX,
        effective_at: None,
        expires_at: None,
        reason: Some("an outage"),
    }));
    assert!(matches!(reply.outcome, Outcome::GrantPut(_)), "{reply:?}");
    for grant in [name("again"), grant] {
        let (account, reason) = (account.as_str(), "disputed");
        worst.apply(Command::Revoke(Revoke { account, grant: &grant, credits: None, reason }));
    }
    for by in [ResetBy::Operator, ResetBy::Banking { resets: 1_000 }, ResetBy::Banked] {
        let (reply, ..) =
            worst.apply(Command::Reset(Reset { account: &account, limits: None, by, reason: "an outage" }));
        assert!(matches!(reply.outcome, Outcome::Reset(_)), "{reply:?}");
    }
    let amounts = TopUp {
        threshold: Credits(Credits::MAX.0 - 1),
        target: Credits::MAX,
        monthly_cap: Some(Credits::MAX),
        bridge: Credits::ZERO,
    };
    let (reply, ..) = worst.apply(Command::PutAccount(PutAccount {
        account: &account,
        plan: Change::Keep,
        spending_cap: Change::Keep,
        state: None,
        top_up: Change::Set(amounts),
    }));
    assert!(matches!(reply.outcome, Outcome::AccountPut(_)), "{reply:?}");
    let (id, reason) = (TopUpId(1), "r".repeat(REASON_BYTES_MAX));
    worst.apply(Command::TopUpDelivered(TopUpDelivered { id }));
    let fail = FailTopUp { id, reason: &reason, retry_after: None };
    let (reply, ..) = worst.apply(Command::FailTopUp(fail));
    assert!(matches!(reply.outcome, Outcome::TopUp(_)), "{reply:?}");
    worst.apply(Command::ConfirmTopUp(ConfirmTopUp { id, credits: None, reason: Some(&reason) }));
    worst.apply(Command::Tick);
}

#[test]
fn a_refusal_quotes_no_more_than_a_part_of_a_long_name() {
    let mut worst = Worst::with_as_many_grants_as_can_be();
    let (account, feature) = (path(4), name("f"));
    for long in ["é".repeat(40_000), format!("a{}", "é".repeat(40_000))] {
        let (reply, ..) = worst.apply(Command::Admit(Admit {
            account: &account,
            feature: &feature,
            usage: vec![(&long, 1)],
            attributes: vec![],
            hold_ttl: None,
            dry_run: false,
            list_limits: false,
            endpoint: None,
            region: None,
            class: None,
        }));
        assert!(matches!(reply.outcome, Outcome::Refused(_)), "{reply:?}");
        let document = format!(r#"{{"plans": {{"{long}": {{}}}}}}"#);
        worst.apply(Command::PutPolicy(PutPolicy { document: &document, if_revision: None }));
    }
}

/// The bound on replies is not what makes usual entries small: so many admissions fit as before.
#[test]
fn as_many_admissions_as_an_entry_takes_have_replies_that_fit_one_message() {
    let admit = |list_limits| {
        let admit = Admit {
            account: "a",
            feature: "f",
            usage: vec![],
            attributes: vec![],
            hold_ttl: None,
            dry_run: false,
            list_limits,
            endpoint: None,
            region: None,
            class: None,
        };
        Command::Admit(admit).reply_bytes_max()
    };
    assert!(admit(false) * Limits::default().entry_requests_max <= Limits::REPLIES_BYTES_MAX);
    // With every limit listed, as many as fit by their own size.
    const REQUEST_BYTES_USUAL: usize = 192;
    assert!(admit(true) * (Limits::ENTRY_BYTES_MAX / REQUEST_BYTES_USUAL) <= Limits::REPLIES_BYTES_MAX);
}

#[test]
fn a_tick_that_is_refused_for_its_key_is_no_larger_than_said() {
    let mut state = State::new();
    let key = "k".repeat(128);
    let mut tick = |fingerprint| {
        let key = Some(Key { key: &key, fingerprint });
        state.apply(Stamp::default(), &Request { key, command: Command::Tick })
    };
    let (kept, refused) = (tick([1; 16]), tick([2; 16]));
    assert!(
        matches!((&kept.outcome, &refused.outcome), (Outcome::Ticked, Outcome::Refused(_))),
        "{refused:?}"
    );
    let bytes = record::encode(&refused).expect("it encodes").len();
    assert!(bytes <= Command::Tick.reply_bytes_max(), "{bytes} bytes");
}
