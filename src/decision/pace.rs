//! Pace: whether work that reports what it has used so far should go on, or stop while it still can.
//!
//! Only looks: a verdict reserves nothing, and what others draw meanwhile is gone.
//!
//! The rule: what was reported costs `used`. What it can reach is the price that the hold reserved and,
//! unless the plan's overrun rule is to refuse, what could be drawn beyond it now: the room of allowances on
//! units that were used and on the price, and what wallets have and the plan lends, as far as spending
//! caps let them. Once `used` is something and at least the policy's share of the reach, it is to pause.

use crate::decision::hold::{Actual, Hold};
use crate::decision::policy::{Measure, Overrun};
use crate::decision::reply::{Pace, PaceVerdict};
use crate::decision::state::State;
use crate::decision::waterfall::{Levels, least_room, saturating_credits};
use crate::units::{Credits, Ppm};

impl State {
    /// What a partial settlement of `hold` says, when `actual` was used so far.
    pub(super) fn pace(&self, hold: &Hold, levels: &Levels, actual: &Actual) -> Pace {
        let reach = i128::from(hold.cost.0) + self.reach_beyond(hold, levels, actual);
        let used = i128::from(actual.cost.0);
        let share = self.policy.document.settings.pause_share;
        let is_at_share = used * i128::from(Ppm::ONE.0) >= reach * i128::from(share.0);
        Pace {
            verdict: if used > 0 && is_at_share { PaceVerdict::Pause } else { PaceVerdict::Continue },
            left: saturating_credits((reach - used).max(0)),
        }
    }

    /// What could be drawn now for use beyond the hold.
    fn reach_beyond(&self, hold: &Hold, levels: &Levels, actual: &Actual) -> i128 {
        let lendable = match hold.overrun {
            Overrun::Refuse => return 0,
            Overrun::Draw => Credits::ZERO,
            Overrun::Overdraft { credits } => self.lendable(levels, credits),
        };
        let looks = self.looks(&self.policy, levels, self.policy.feature(&hold.feature), hold.class);
        let mut reach = 0;
        for (place, line) in hold.lines.iter().enumerate().filter(|(place, _)| actual.quantities[*place] > 0)
        {
            if let Some((room, _)) = self.least_room_of(hold, &looks, place) {
                reach += i128::from(line.rate.price(room).unwrap_or(Credits::MAX).0);
            }
        }
        if let Some((room, _)) = least_room(&looks, Measure::Cost) {
            reach += i128::from(room);
        }
        let caps = self.cap_looks(levels);
        let room = caps.iter().map(|cap| cap.reading.room).min().unwrap_or(u64::MAX);
        let wallets = self.drawable_sum(levels, self.now) + i128::from(lendable.0);
        reach + wallets.min(i128::from(room))
    }
}
