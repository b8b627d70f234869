//! How large a reply can be, by what was asked: known before anything is decided.
//!
//! Replies travel between nodes in one message for all that was asked together, so whoever puts requests
//! together adds these up, and no message can be too large. What must hold: no reply is larger than
//! this, in an encoding that takes up to 9 bytes for a number or a mark and 3 more than its length
//! for a text. So each list in a reply has a bound that does not depend on what the state holds, and
//! so has each text.

use crate::decision::command::{Command, REASON_BYTES_MAX};
use crate::decision::path::{GRANT_ID_LEN_MAX, LEVELS_MAX, NAME_LEN_MAX, SEGMENT_LEN_MAX};
use crate::decision::policy::Policy;
use crate::decision::reply::{AccountView, Admitted, Payment, Refusal};

const NUMBER: usize = 9;
/// A number that may be absent.
const OPTION: usize = 1 + NUMBER;
/// A level, a flag, a small mark.
const MARK: usize = 1;
const NAME: usize = text(NAME_LEN_MAX);
const PATH: usize = text(LEVELS_MAX * (SEGMENT_LEN_MAX + 1));
const BALANCES: usize = 7 * NUMBER;

/// What stands around every outcome: the stamp, the policy, the load, whether it is replayed, which outcome.
const AROUND: usize = 4 * NUMBER + 2 * NUMBER + MARK + NUMBER;

/// Limits that can count one request: those of a plan at every level, and a feature's capacity.
const LIMITS_MAX: usize = LEVELS_MAX * Policy::PLAN_LIMITS_MAX + Policy::CAPACITY_LIMITS_MAX;
const LIMITS: usize = NUMBER + LIMITS_MAX * (2 * NAME + 2 * MARK + 2 * NUMBER + 3 * OPTION);

/// Allowances that can pay for one request: one for each unit and one for the price; when a hold is
/// settled, those of the policy under which it was admitted and those of today's.
const PAYING_LIMITS_MAX: usize = 2 * (Policy::FEATURE_UNITS_MAX + 1);
const PAYMENTS: usize = NUMBER
    + Payment::GRANTS_NAMED_MAX * (2 * MARK + text(GRANT_ID_LEN_MAX) + NUMBER)
    + LEVELS_MAX * (2 * MARK + 2 * NUMBER)
    + PAYING_LIMITS_MAX * (2 * MARK + NAME + NUMBER);

const REFUSED: usize = AROUND
    + MARK
    + (2 * MARK + NAME)
    + text(Refusal::DETAIL_BYTES_MAX)
    + MARK
    + text(Refusal::FIELD_BYTES_MAX)
    + NUMBER
    + 3 * OPTION
    + MARK;
const WOULD_REFUSE: usize = NUMBER + Admitted::WOULD_REFUSE_MAX * (2 * MARK + NAME);
const ADMITTED: usize = AROUND + 2 * NUMBER + MARK + PAYMENTS + NUMBER + 2 * NUMBER + OPTION + WOULD_REFUSE;
const SETTLED: usize = AROUND + 2 * NUMBER + MARK + 2 * PAYMENTS + 3 * NUMBER + OPTION + (2 * MARK + NUMBER);
const GRANT: usize = text(GRANT_ID_LEN_MAX) + MARK + 3 * NUMBER + OPTION + BALANCES;
const HOLD: usize = NUMBER + PATH + NAME + 3 * NUMBER;
const ACCOUNT: usize = AROUND
    + PATH
    + (MARK + NAME)
    + MARK
    + (OPTION + MARK)
    + LIMITS
    + BALANCES
    + (NUMBER + AccountView::LISTED_IN_REPLY_MAX * GRANT)
    + (NUMBER + AccountView::LISTED_IN_REPLY_MAX * HOLD)
    + 2 * NUMBER
    + 2 * NUMBER
    + (MARK + 3 * NUMBER + OPTION)
    + OPTION;
const TOP_UP: usize = AROUND + NUMBER + PATH + 4 * NUMBER + 4 * OPTION + MARK + text(REASON_BYTES_MAX);
const RESET: usize = AROUND + PATH + NUMBER + Policy::PLAN_LIMITS_MAX * (2 * NAME + NUMBER) + NUMBER;

impl Command<'_> {
    /// The largest reply to any command, in bytes.
    pub const REPLY_BYTES_MAX: usize = larger(larger(ADMITTED, REFUSED) + LIMITS, ACCOUNT);

    /// The largest reply to this command, in bytes. A reply kept under a key is one to an equal command.
    pub fn reply_bytes_max(&self) -> usize {
        match self {
            Command::Admit(admit) if admit.list_limits => larger(ADMITTED, REFUSED) + LIMITS,
            Command::Admit(_) => larger(ADMITTED, REFUSED),
            Command::Settle(_) | Command::Release(_) => larger(SETTLED, REFUSED),
            Command::PutAccount(_) => larger(ACCOUNT, REFUSED),
            Command::PutGrant(_) => larger(AROUND + GRANT, REFUSED),
            Command::Reset(_) => larger(RESET, REFUSED),
            Command::Revoke(_) => larger(AROUND + GRANT + 2 * NUMBER, REFUSED),
            Command::ConfirmTopUp(_) | Command::FailTopUp(_) | Command::TopUpDelivered(_) => {
                larger(TOP_UP, REFUSED)
            }
            // A tick, too, may be refused for its key.
            Command::PutPolicy(_)
            | Command::Extend(_)
            | Command::Signals(_)
            | Command::Tick
            | Command::Mark => REFUSED,
        }
    }
}

const fn text(bytes: usize) -> usize {
    3 + bytes
}

const fn larger(one: usize, other: usize) -> usize {
    if one > other { one } else { other }
}
