//! Holds: what was reserved, until it is settled, released or expires.
//!
//! Ending a hold first pays with what it reserved, in the order in which it was reserved, so that
//! what is left over goes back to the last payer first. Only use beyond the hold looks at limits
//! and wallets anew, as far as the plan's overrun rule lets it.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::account::{AccountPlace, Back};
use crate::decision::capacity::SlotsGivenBack;
use crate::decision::command::{Class, Extend, Release, Settle, Stamp};
use crate::decision::facts::{
    Bucket, Charge, Covered, HoldTime, Multiplier, UnitUsed, Usage, UsageOutcome, Why,
};
use crate::decision::ledger::{self, ChargeLink, push_covered};
use crate::decision::meter::Mark;
use crate::decision::policy::{Measure, MeterKey, Overrun, Policy, Then};
use crate::decision::price::Rate;
use crate::decision::recent::Resolved;
use crate::decision::refusal::outcome;
use crate::decision::reply::{
    AdmissionId, AdmissionStatus, Layer, Outcome, Payment, Reason, Refusal, Settled,
};
use crate::decision::state::State;
use crate::decision::wallet::Wallet;
use crate::decision::waterfall::{
    ByUnit, Draw, Levels, Look, amount_too_large, cost, least_room, limit_payer, push_payment, quantities,
};
use crate::units::{Credits, Millis, Ppm, Span};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hold {
    pub id: AdmissionId,
    pub account: AccountPlace,
    pub feature: Arc<str>,
    pub stamp: Stamp,
    pub policy: u64,
    /// The version of the load.
    pub load: u64,
    /// What does the work and where, in the caller's words.
    pub endpoint: Option<Arc<str>>,
    pub region: Option<Arc<str>>,
    /// What the rates were multiplied with.
    pub multipliers: Vec<Multiplier>,
    /// The units of the feature as they were when it was admitted.
    pub lines: Vec<Line>,
    pub cost: Credits,
    /// What allowances on the price reserved.
    pub credits_covered: Credits,
    pub credits_payer: Option<(u8, Arc<str>)>,
    /// What wallets reserved, in draw order.
    pub draws: Vec<Draw>,
    /// What was counted on limits, to be uncounted where it is not used.
    pub debits: Vec<Debit>,
    /// The use that was reported so far, by line.
    pub reported: Option<Vec<u64>>,
    /// The longest that was reported so far.
    pub compute_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    pub expires_at: Millis,
    /// The index of the entry with its latest event.
    pub latest: u64,
    pub overrun: Overrun,
    /// Of the request.
    pub class: Class,
}

/// What a hold reserved of one unit, and at what price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub unit: Arc<str>,
    pub quantity: u64,
    pub rate: Rate,
    /// The quantity that allowances on this unit reserved.
    pub covered: u64,
    pub payer: Option<(u8, Arc<str>)>,
}

/// An amount counted on a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Debit {
    pub account: AccountPlace,
    pub key: MeterKey,
    pub measure: Measure,
    pub allowance: bool,
    /// How much of the request it counts.
    pub asked: u64,
    /// What that counted for.
    pub amount: u64,
    /// By how much that is more than its own, in millionths ([`Carry::beyond`](crate::decision::factor::Carry::beyond)).
    pub beyond: i32,
    pub mark: Mark,
}

/// What was really used, by line, and what it costs.
pub(super) struct Actual {
    pub quantities: ByUnit<u64>,
    pub cost: Credits,
}

/// What the hold itself pays of the actual use.
struct FromHold {
    units: ByUnit<u64>,
    credits: Credits,
    /// By the place of a draw.
    draws: Vec<Credits>,
    payments: Vec<Payment>,
    /// What allowances cover, with what overruns the hold.
    covered: Vec<Covered>,
    rest: Credits,
}

impl Hold {
    /// Prices what is said to have been used.
    fn actual(&self, quantities: ByUnit<u64>) -> Result<Actual, Box<Refusal>> {
        let cost = cost(&self.rates(), &quantities)
            .map_err(|place| amount_too_large(place.map_or("", |place| &*self.lines[place].unit)))?;
        Ok(Actual { quantities, cost })
    }

    /// Reads `usage`: what is not named was not used, but for `requests`, which stays as admitted.
    fn quantities(&self, usage: &[(&str, u64)]) -> Result<ByUnit<u64>, Box<Refusal>> {
        let units = self.lines.iter().map(|line| &*line.unit);
        let mut quantities = quantities(units, &self.feature, usage)?;
        for (place, line) in self.lines.iter().enumerate() {
            let named = usage.iter().any(|(unit, _)| **unit == *line.unit);
            if !named && *line.unit == *Policy::REQUESTS {
                quantities[place] = line.quantity;
            }
        }
        Ok(quantities)
    }

    fn reported(&self) -> ByUnit<u64> {
        let mut quantities = [0; Policy::FEATURE_UNITS_MAX];
        if let Some(reported) = &self.reported {
            quantities[..reported.len()].copy_from_slice(reported);
        }
        quantities
    }

    fn rates(&self) -> ByUnit<Rate> {
        let mut rates = [Rate::FREE; Policy::FEATURE_UNITS_MAX];
        for (rate, line) in rates.iter_mut().zip(&self.lines) {
            *rate = line.rate;
        }
        rates
    }

    /// Pays `actual` out of what was reserved, first what was reserved first.
    fn pay(&self, actual: &Actual) -> FromHold {
        let mut paid = FromHold {
            units: [0; Policy::FEATURE_UNITS_MAX],
            credits: Credits::ZERO,
            draws: Vec::with_capacity(self.draws.len()),
            payments: Vec::new(),
            covered: Vec::new(),
            rest: actual.cost,
        };
        for (place, line) in self.lines.iter().enumerate() {
            let quantity = actual.quantities[place];
            paid.units[place] = line.covered.min(quantity);
            let credits = line.last_units_price(quantity, paid.units[place]);
            paid.rest.0 -= credits.0;
            push_payment(&mut paid.payments, limit_payer(&line.payer), credits);
            push_covered(&mut paid.covered, line.payer.as_ref(), credits);
        }
        paid.credits = self.credits_covered.min(paid.rest);
        paid.rest.0 -= paid.credits.0;
        push_payment(&mut paid.payments, limit_payer(&self.credits_payer), paid.credits);
        push_covered(&mut paid.covered, self.credits_payer.as_ref(), paid.credits);
        for draw in &self.draws {
            let amount = draw.amount.min(paid.rest);
            paid.rest.0 -= amount.0;
            paid.draws.push(amount);
            draw.push_payment(&mut paid.payments, amount);
        }
        paid
    }

    /// What goes back, to the last payer first.
    fn returned(&self, paid: &FromHold) -> Vec<Payment> {
        let mut returned = Vec::new();
        for (draw, paid) in self.draws.iter().zip(&paid.draws).rev() {
            draw.push_payment(&mut returned, Credits(draw.amount.0 - paid.0));
        }
        let credits = Credits(self.credits_covered.0 - paid.credits.0);
        push_payment(&mut returned, limit_payer(&self.credits_payer), credits);
        for (place, line) in self.lines.iter().enumerate().rev() {
            let held = line.last_units_price(line.quantity, line.covered);
            let used = line.last_units_price(line.quantity, paid.units[place]);
            push_payment(&mut returned, limit_payer(&line.payer), Credits(held.0 - used.0));
        }
        returned
    }

    /// Who reserved, in the order in which they were drawn.
    pub fn payments(&self) -> Vec<Payment> {
        let mut payments = Vec::new();
        for line in &self.lines {
            let credits = line.last_units_price(line.quantity, line.covered);
            push_payment(&mut payments, limit_payer(&line.payer), credits);
        }
        push_payment(&mut payments, limit_payer(&self.credits_payer), self.credits_covered);
        for draw in &self.draws {
            draw.push_payment(&mut payments, draw.amount);
        }
        payments
    }

    /// Whether the hold itself paid from the grant that `draw` draws on.
    fn drew_from(&self, draw: &Draw, paid: &FromHold) -> bool {
        let mut drawn = self.draws.iter().zip(&paid.draws);
        drawn.any(|(own, amount)| own.sequence == draw.sequence && !amount.is_zero())
    }

    /// How much of what a debit counts was used.
    fn used_of(&self, debit: &Debit, actual: &Actual, paid: &FromHold) -> u64 {
        let used = match (debit.allowance, debit.measure) {
            (_, Measure::Slot) => 0,
            (true, Measure::Unit(place)) => paid.units[usize::from(place)],
            (false, Measure::Unit(place)) => actual.quantities[usize::from(place)],
            (true, Measure::Cost) => paid.credits.0.unsigned_abs(),
            (false, Measure::Cost) => actual.cost.0.unsigned_abs(),
            (_, Measure::Drawn) => paid.draws.iter().map(|draw| draw.0.unsigned_abs()).sum(),
        };
        used.min(debit.asked)
    }
}

impl Debit {
    /// How much of what it counted for is not used, in proportion: in whole numbers, rounded down.
    fn unused(&self, used: u64) -> u64 {
        let counted = (u128::from(used) * u128::from(self.amount)).div_ceil(u128::from(self.asked.max(1)));
        self.amount - u64::try_from(counted).unwrap_or(u64::MAX).min(self.amount)
    }

    /// The same to the millionth, of its own: what it counted for beyond that was carried to others.
    fn unused_millionths(&self, used: u64) -> u128 {
        let own = i128::from(self.amount) * i128::from(Ppm::ONE.0) - i128::from(self.beyond);
        let (own, asked) = (own.unsigned_abs(), u128::from(self.asked.max(1)));
        // Divided first, since the product may be larger than any number.
        let unused = u128::from(self.asked - used);
        own / asked * unused + own % asked * unused / asked
    }
}

impl Line {
    /// What the last `covered` of `quantity` cost: parts of a price that is known to fit.
    fn last_units_price(&self, quantity: u64, covered: u64) -> Credits {
        let price = |quantity| self.rate.price(quantity).unwrap_or(Credits::ZERO);
        Credits(price(quantity).0 - price(quantity.saturating_sub(covered)).0)
    }
}

impl State {
    pub(super) fn settle(&mut self, settle: &Settle<'_>) -> Outcome {
        outcome(self.try_settle(settle))
    }

    fn try_settle(&mut self, settle: &Settle<'_>) -> Result<Outcome, Box<Refusal>> {
        let hold = self.find_hold(settle.admission)?;
        let mut quantities = hold.quantities(&settle.usage)?;
        // Reports say what was used in all: one that comes late takes nothing back.
        for (quantity, reported) in quantities.iter_mut().zip(hold.reported()) {
            *quantity = reported.max(*quantity);
        }
        let actual = hold.actual(quantities)?;
        let hold = self.hold_mut(settle.admission);
        hold.compute_ms = hold.compute_ms.max(settle.compute_ms);
        hold.duration_ms = hold.duration_ms.max(settle.duration_ms);
        if settle.last {
            let settled = self.end_hold(settle.admission, actual, AdmissionStatus::Settled);
            return Ok(Outcome::Settled(Box::new(settled)));
        }
        hold.reported = Some(quantities[..hold.lines.len()].to_vec());
        let (account, paid, expires_at) = (hold.account, hold.pay(&actual), hold.expires_at);
        self.note_report(settle.admission, &actual);
        let levels = self.levels(account);
        let hold = self.hold(settle.admission).expect("only a hold that was found is reported on");
        let pace = self.pace(hold, &levels, &actual);
        Ok(Outcome::Settled(Box::new(Settled {
            id: settle.admission,
            last: false,
            cost: actual.cost,
            paid_by: paid.payments,
            returned: Vec::new(),
            uncovered: paid.rest,
            available: self.drawable(&levels, self.now),
            held: self.held(&levels),
            hold_expires_at: Some(expires_at),
            pace: Some(pace),
        })))
    }

    pub(super) fn extend(&mut self, extend: &Extend) -> Outcome {
        outcome(self.try_extend(extend))
    }

    fn try_extend(&mut self, extend: &Extend) -> Result<Outcome, Box<Refusal>> {
        let before = self.find_hold(extend.admission)?.expires_at;
        let expires_at = before.max(self.hold_end(extend.ttl, "ttl_ms")?);
        self.unindex_hold(extend.admission);
        self.hold_mut(extend.admission).expires_at = expires_at;
        self.index_hold(extend.admission);
        self.note_extension(extend.admission, HoldTime { before: Some(before), until: expires_at });
        Ok(Outcome::Extended { expires_at })
    }

    pub(super) fn release(&mut self, release: &Release) -> Outcome {
        let ended = self.find_hold(release.admission).and_then(|hold| hold.actual(hold.reported()));
        outcome(ended.map(|actual| {
            let settled = self.end_hold(release.admission, actual, AdmissionStatus::Released);
            Outcome::Released(Box::new(settled))
        }))
    }

    /// Ends a hold whose time is over: what was reported is charged, the rest goes back.
    pub(super) fn expire_hold(&mut self, id: AdmissionId) {
        let hold = self.find_hold(id).expect("a deadline is of a hold that is there");
        let actual = hold.actual(hold.reported()).expect("a report is priced before it is kept");
        self.end_hold(id, actual, AdmissionStatus::Expired);
    }

    fn end_hold(&mut self, id: AdmissionId, actual: Actual, status: AdmissionStatus) -> Settled {
        let hold = self.remove_hold(id);
        let levels = self.levels(hold.account);
        let mut paid = hold.pay(&actual);
        let returned = hold.returned(&paid);
        let policy = Arc::clone(&self.policy);
        let found = self.keeps_facts().then(|| {
            let looks = self.looks(&policy, &levels, policy.feature(&hold.feature), hold.class);
            let caps = self.cap_looks(&levels);
            let seen = self.seen(&policy, &levels, &looks, &caps, &self.funds(&levels));
            (seen, looks, caps)
        });
        let (usage, charge) = self.note_end(&hold, &actual, status);
        for debit in &hold.debits {
            let used = hold.used_of(debit, &actual, &paid);
            let back = Back { millionths: debit.unused_millionths(used), counted: debit.amount };
            let account = self.account_mut(debit.account);
            account.give_back(debit.key, id, back, hold.stamp.at, debit.mark);
            if debit.account == AccountPlace::CLUSTER {
                self.share_back(&hold, &levels, debit, debit.unused(used));
            }
        }
        for (draw, spent) in hold.draws.iter().zip(&paid.draws) {
            self.post(draw.transfer(*spent, Bucket::Held, Bucket::Spent, Why::Settled), charge);
            let unused = Credits(draw.amount.0 - spent.0);
            if unused.is_zero() {
                continue;
            }
            let now = self.now;
            for (to, amount) in self.wallet_mut(draw.account).returns(draw.sequence, unused, now) {
                self.post(draw.transfer(amount, Bucket::Held, to, Why::Returned), charge);
            }
        }
        for draw in &hold.draws {
            self.pay_back(draw.account);
        }
        self.overrun(&hold, &levels, &actual, &mut paid, charge);
        self.complete_charge(charge, std::mem::take(&mut paid.covered), paid.rest);
        // After all of it was decided: what it says of an account counts from the next decision on.
        self.remember_end(&hold, &levels, actual.cost, status);
        if let Some((mut seen, looks, caps)) = found {
            self.see_again(&mut seen, &levels, &looks, &caps);
            self.note_layers(usage, hold.class, seen);
        }
        self.recent.keep(Resolved {
            id,
            account: hold.account,
            feature: hold.feature.clone(),
            status,
            cost: actual.cost,
            paid_by: paid.payments.clone(),
            uncovered: paid.rest,
            stamp: hold.stamp,
            latest: self.entry_index(),
            policy: hold.policy,
            load: hold.load,
            resolved_at: self.now,
        });
        Settled {
            id,
            last: true,
            cost: actual.cost,
            paid_by: paid.payments,
            returned,
            uncovered: paid.rest,
            available: self.drawable(&levels, self.now),
            held: self.held(&levels),
            hold_expires_at: None,
            pace: None,
        }
    }

    /// Counts and pays what was used beyond the hold. Guards count it even beyond their quota, since
    /// it has happened; allowances, wallets and spending caps give what they have and no more.
    fn overrun(
        &mut self,
        hold: &Hold,
        levels: &Levels,
        actual: &Actual,
        paid: &mut FromHold,
        charge: ChargeLink,
    ) {
        if !hold.is_overrun_by(actual) && paid.rest.is_zero() {
            return;
        }
        let policy = Arc::clone(&self.policy);
        let looks = self.looks(&policy, levels, policy.feature(&hold.feature), hold.class);
        let mut units = [0; Policy::FEATURE_UNITS_MAX];
        let mut credits = Credits::ZERO;
        if hold.overrun != Overrun::Refuse && !paid.rest.is_zero() {
            for (place, line) in hold.lines.iter().enumerate() {
                let beyond = actual.quantities[place].saturating_sub(line.quantity);
                let on_unit = self.least_room_of(hold, &looks, place);
                let Some((room, payer)) = on_unit.filter(|_| beyond > 0) else { continue };
                units[place] = room.min(beyond);
                let price = line.last_units_price(actual.quantities[place], units[place]).min(paid.rest);
                paid.rest.0 -= price.0;
                push_covered(&mut paid.covered, Some(&payer), price);
                push_payment(&mut paid.payments, limit_payer(&Some(payer)), price);
            }
            if let Some((room, payer)) = least_room(&looks, Measure::Cost) {
                credits = paid.rest.min(Credits(i64::try_from(room).unwrap_or(i64::MAX)));
                paid.rest.0 -= credits.0;
                push_covered(&mut paid.covered, Some(&payer), credits);
                push_payment(&mut paid.payments, limit_payer(&Some(payer)), credits);
            }
            self.overdraw_wallets(hold, levels, paid, charge);
        }
        for look in &looks {
            let counted = match (look.limit.then, look.measure) {
                (_, Measure::Slot | Measure::Drawn) => 0,
                (Then::Credits, Measure::Cost) => credits.0.unsigned_abs(),
                (Then::Refuse, Measure::Cost) => (actual.cost.0 - hold.cost.0).max(0).unsigned_abs(),
                (then, Measure::Unit(_)) => hold.place_of(&policy, look).map_or(0, |place| match then {
                    Then::Credits => units[place],
                    Then::Refuse => actual.quantities[place].saturating_sub(hold.lines[place].quantity),
                }),
            };
            if counted > 0 {
                drop(self.count(look, counted));
            }
        }
    }

    /// Lets wallets pay what is left, as far as they, what the plan lends and the spending caps reach.
    fn overdraw_wallets(&mut self, hold: &Hold, levels: &Levels, paid: &mut FromHold, charge: ChargeLink) {
        let caps = self.cap_looks(levels);
        let room = caps.iter().map(|cap| cap.reading.room).min().unwrap_or(u64::MAX);
        let wanted = paid.rest.min(Credits(i64::try_from(room).unwrap_or(i64::MAX)));
        let draws = self.draws(levels, wanted);
        let drawn: i64 = draws.iter().map(|draw| draw.amount.0).sum();
        for draw in &draws {
            self.post(draw.transfer(draw.amount, Bucket::Available, Bucket::Spent, Why::Overran), charge);
            match hold.drew_from(draw, paid) {
                true => draw.push_payment_again(&mut paid.payments, draw.amount),
                false => draw.push_payment(&mut paid.payments, draw.amount),
            }
        }
        paid.rest.0 -= drawn;
        let lent = match hold.overrun {
            Overrun::Overdraft { credits } => {
                self.lendable(levels, credits).min(Credits(wanted.0 - drawn)).min(paid.rest)
            }
            Overrun::Refuse | Overrun::Draw => Credits::ZERO,
        };
        if !lent.is_zero() {
            let draw = self.lend(levels, lent, charge);
            draw.push_payment(&mut paid.payments, lent);
            paid.rest.0 -= lent.0;
        }
        let drawn = drawn + lent.0;
        for cap in caps.iter().filter(|_| drawn > 0) {
            let now = self.now;
            let account = self.account_mut(cap.account);
            account.take(MeterKey::SPENDING_CAP, &cap.rule, now, drawn.unsigned_abs());
        }
    }

    /// The least room among today's allowances on the unit at `place` of the hold.
    pub(super) fn least_room_of(
        &self,
        hold: &Hold,
        looks: &[Look<'_>],
        place: usize,
    ) -> Option<(u64, (u8, Arc<str>))> {
        let (_, feature) = self.policy.feature(&hold.feature)?;
        let today = feature.units.iter().position(|unit| unit.name == hold.lines[place].unit)?;
        least_room(looks, Measure::Unit(today as u8))
    }

    // --- recording ------------------------------------------------------------------------------

    /// Records what was reported of a hold that goes on.
    fn note_report(&mut self, id: AdmissionId, actual: &Actual) {
        let account = self.hold(id).expect("only a hold that was found is reported on").account;
        let previous = self.trace(account);
        if self.keeps_facts() {
            let hold = self.hold(id).expect("only a hold that was found is reported on");
            let usage = hold.usage(actual, UsageOutcome::PartlySettled);
            self.push_usage(Usage { previous, charged: false, ..usage });
        }
        self.hold_mut(id).latest = self.entry_index();
    }

    /// Records that a hold is kept for longer.
    fn note_extension(&mut self, id: AdmissionId, time: HoldTime) {
        let account = self.hold(id).expect("only a hold that was found is extended").account;
        let previous = self.trace(account);
        if self.keeps_facts() {
            let hold = self.hold(id).expect("only a hold that was found is extended");
            let units = hold.lines.iter().map(|line| &line.unit);
            let units = match &hold.reported {
                Some(reported) => ledger::units(units, reported),
                None => {
                    let reserved: Vec<u64> = hold.lines.iter().map(|line| line.quantity).collect();
                    ledger::units(units, &reserved)
                }
            };
            let usage = hold.event(units, UsageOutcome::Extended);
            self.push_usage(Usage { previous, hold: Some(time), ..usage });
        }
        self.hold_mut(id).latest = self.entry_index();
    }

    /// Records the end of a hold and its price. Who carries it is completed later.
    fn note_end(
        &mut self,
        hold: &Hold,
        actual: &Actual,
        status: AdmissionStatus,
    ) -> (Option<u32>, ChargeLink) {
        let outcome = match status {
            AdmissionStatus::Held => UsageOutcome::Held,
            AdmissionStatus::Settled => UsageOutcome::Settled,
            AdmissionStatus::Released => UsageOutcome::Released,
            AdmissionStatus::Expired => UsageOutcome::Expired,
        };
        let usage = self.note_usage(hold.account, || hold.usage(actual, outcome));
        let charge = self.note_charge(usage, || Charge {
            number: 0,
            usage: 0,
            policy: hold.policy,
            lines: ledger::charge_lines(&actual.quantities, hold.lines.iter().map(|line| line.rate)),
            multipliers: hold.multipliers.clone(),
            amount: actual.cost,
            covered: Vec::new(),
            drawn: Credits::ZERO,
            uncovered: Credits::ZERO,
        });
        (usage, charge)
    }

    // --- where holds are ------------------------------------------------------------------------

    pub(super) fn insert_hold(&mut self, hold: Hold) {
        let id = hold.id;
        let place = self.holds.insert(hold);
        self.hold_by_id.insert(id, place);
        self.index_hold(id);
    }

    fn remove_hold(&mut self, id: AdmissionId) -> Hold {
        self.unindex_hold(id);
        let place = self.hold_by_id.remove(&id).expect("only a hold that was found is ended");
        self.holds.remove(place).expect("only a hold that was found is ended")
    }

    pub(super) fn hold(&self, id: AdmissionId) -> Option<&Hold> {
        self.holds.get(*self.hold_by_id.get(&id)?)
    }

    fn hold_mut(&mut self, id: AdmissionId) -> &mut Hold {
        let place = self.hold_by_id[&id];
        self.holds.get_mut(place).expect("only a hold that was found is changed")
    }

    fn find_hold(&self, id: AdmissionId) -> Result<&Hold, Box<Refusal>> {
        if let Some(hold) = self.hold(id) {
            return Ok(hold);
        }
        if id.0 == 0 || id.0 >= self.next_admission {
            let detail = format!("there is no admission {id}");
            return Err(Refusal::of_field(Reason::AdmissionUnknown, "admission", detail));
        }
        let how = match self.recent.get(id).map(|resolved| resolved.status) {
            None | Some(AdmissionStatus::Held) => "resolved",
            Some(AdmissionStatus::Settled) => "settled",
            Some(AdmissionStatus::Released) => "released",
            Some(AdmissionStatus::Expired) => "expired",
        };
        let detail = format!("the admission {id} is already {how}");
        Err(Refusal::new(Reason::HoldResolved, Layer::Hold, detail))
    }

    fn index_hold(&mut self, id: AdmissionId) {
        let (account, expires_at) = self.whose_and_until(id);
        for place in self.levels(account).iter() {
            self.holds_by_account.insert((place, expires_at, id));
            *self.hold_counts.entry(place).or_insert(0) += 1;
        }
        self.hold_deadlines.insert((expires_at, id));
    }

    fn unindex_hold(&mut self, id: AdmissionId) {
        let (account, expires_at) = self.whose_and_until(id);
        for place in self.levels(account).iter() {
            self.holds_by_account.remove(&(place, expires_at, id));
            if let Entry::Occupied(mut count) = self.hold_counts.entry(place) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        self.hold_deadlines.remove(&(expires_at, id));
    }

    fn whose_and_until(&self, id: AdmissionId) -> (AccountPlace, Millis) {
        let hold = self.hold(id).expect("only a hold that is there is indexed");
        (hold.account, hold.expires_at)
    }

    /// The holds at or below an account, soonest to expire first.
    pub(super) fn holds_of(&self, account: AccountPlace) -> impl Iterator<Item = &Hold> {
        let first = (account, Millis(0), AdmissionId(0));
        let last = (account, Millis(u64::MAX), AdmissionId(u64::MAX));
        self.holds_by_account.range(first..=last).filter_map(|(_, _, id)| self.hold(*id))
    }

    /// When enough of the holds that take the slots of a limit will have expired for one more of the request's class, if
    /// nobody ends or extends one before. Unknown where that takes looking at too many.
    pub(super) fn slot_frees_at(&self, look: &Look<'_>) -> Option<Millis> {
        const HOLDS_LOOKED_AT_MAX: usize = 1_000;
        let mut given_back = SlotsGivenBack::default();
        let mut holds = self.holds_of(look.account).take(HOLDS_LOOKED_AT_MAX);
        let last = holds.find(|hold| given_back.add(look, hold) && look.has_slot_after(&given_back));
        // One that is to end now waits for the next entry.
        last.map(|hold| hold.expires_at.max(self.now.saturating_add(Span(1))))
    }

    pub(super) fn wallet_mut(&mut self, account: AccountPlace) -> &mut Wallet {
        self.account_mut(account).wallet.get_or_insert_default()
    }
}

impl Hold {
    /// Whether more was used than it reserved.
    fn is_overrun_by(&self, actual: &Actual) -> bool {
        let mut lines = self.lines.iter().zip(&actual.quantities);
        actual.cost > self.cost || lines.any(|(line, quantity)| *quantity > line.quantity)
    }

    /// Use of this hold, for the record.
    fn usage(&self, actual: &Actual, outcome: UsageOutcome) -> Usage {
        let units = ledger::units(self.lines.iter().map(|line| &line.unit), &actual.quantities);
        Usage { charged: actual.cost > Credits::ZERO, ..self.event(units, outcome) }
    }

    /// An event of this hold, for the record.
    fn event(&self, units: Vec<UnitUsed>, outcome: UsageOutcome) -> Usage {
        Usage {
            number: 0,
            previous: 0,
            admission: self.id,
            account: Some(self.account.0),
            feature: self.feature.clone(),
            units,
            compute_ms: self.compute_ms,
            duration_ms: self.duration_ms,
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            admitted_at: Some(self.stamp.at),
            earlier: Some(self.latest),
            hold: None,
            outcome,
            charged: false,
        }
    }

    /// The place among this hold's lines of the unit that a limit counts today.
    fn place_of(&self, policy: &Policy, look: &Look<'_>) -> Option<usize> {
        let Measure::Unit(today) = look.measure else { return None };
        let (_, feature) = policy.feature(&self.feature)?;
        let unit = &feature.units[usize::from(today)].name;
        self.lines.iter().position(|line| line.unit == *unit)
    }
}
