//! Facts for tests, each with what it says where the test says nothing else.

use crate::decision::command::AccountState;
use crate::decision::facts::{AccountPut, Bucket, Charge, Fact, Posting, Usage, UsageOutcome, Why};
use crate::decision::reply::AdmissionId;
use crate::units::Credits;

/// Of the first admission, of account 1: settled at once.
pub(crate) fn usage(number: u32) -> Usage {
    Usage {
        number,
        previous: 3,
        admission: AdmissionId(1),
        account: Some(1),
        feature: "video.generate".into(),
        units: Vec::new(),
        compute_ms: None,
        duration_ms: None,
        region: None,
        endpoint: None,
        admitted_at: None,
        earlier: None,
        hold: None,
        outcome: UsageOutcome::Settled,
        charged: false,
    }
}

/// Of one credit.
pub(crate) fn charge(number: u32, usage: u32) -> Charge {
    Charge {
        number,
        usage,
        policy: 1,
        lines: Vec::new(),
        multipliers: Vec::new(),
        amount: Credits(1),
        covered: Vec::new(),
        drawn: Credits(1),
        uncovered: Credits::ZERO,
    }
}

/// Of one credit of account 1, drawn.
pub(crate) fn posting(number: u32, charge: Option<u32>) -> Posting {
    Posting {
        number,
        previous: 3,
        account: 1,
        grant: 0,
        granted_in: 3,
        amount: Credits(1),
        from: Bucket::Available,
        to: Bucket::Spent,
        why: Why::Drawn,
        charge,
    }
}

pub(crate) fn account_put(account: u32, put_before: u64, plan: Option<&str>) -> Fact {
    Fact::AccountPut(AccountPut {
        number: 0,
        previous: 3,
        put_before,
        account,
        plan: plan.map(Into::into),
        plan_named: true,
        spending_cap: None,
        state: AccountState::Open,
    })
}
