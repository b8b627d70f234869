//! Admissions: from a request to a debit of everything, or of nothing.

use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::command::{Admit, ORIGIN_BYTES_MAX, Stamp};
use crate::decision::factor::{Carry, Factor};
use crate::decision::facts::{Bucket, Charge, Covered, HoldTime, Multiplier, Usage, UsageOutcome, Why};
use crate::decision::hold::{Debit, Hold, Line};
use crate::decision::ledger::{self, ChargeLink, Transfer, push_covered};
use crate::decision::meter::Mark;
use crate::decision::path;
use crate::decision::policy::{Feature, Measure, MeterKey, Policy, Then};
use crate::decision::recent::Resolved;
use crate::decision::refusal::outcome;
use crate::decision::reply::{AdmissionId, AdmissionStatus, Admitted, Outcome, Payment, Reason, Refusal};
use crate::decision::state::State;
use crate::decision::waterfall::{
    Cover, Denied, Draw, Levels, Look, Priced, Verdict, priced, saturating_credits,
};
use crate::units::{Credits, Millis, Ppm, Span};

impl State {
    pub(super) fn admit(&mut self, stamp: Stamp, admit: &Admit<'_>) -> Outcome {
        let decided = self.try_admit(stamp, admit).map_err(|mut denied| {
            if !admit.dry_run {
                self.note_refusal(admit, &mut denied);
                denied.refusal.recorded = true;
            }
            denied.refusal
        });
        outcome(decided)
    }

    fn try_admit(&mut self, stamp: Stamp, admit: &Admit<'_>) -> Result<Outcome, Denied> {
        for (text, field) in [(admit.endpoint, "endpoint"), (admit.region, "region")] {
            text.map_or(Ok(()), |text| path::check_text(text, field, ORIGIN_BYTES_MAX))?;
        }
        let policy = Arc::clone(&self.policy);
        let account = self.find_account(admit.account)?;
        let (feature_place, feature) = policy.feature(admit.feature).ok_or_else(|| {
            let detail = format!("there is no feature {}", admit.feature);
            Refusal::of_field(Reason::FeatureUnknown, "feature", detail)
        })?;
        let priced = priced(feature, &admit.usage, &admit.attributes)?;
        let hold_expires_at = admit.hold_ttl.map(|ttl| self.hold_end(ttl, "hold.ttl_ms")).transpose()?;
        let levels = self.levels(account);
        let feature_at = (feature_place, feature);
        let class = self.class_of(&policy, &levels, admit.class);
        let verdict = self.verdict(&policy, &levels, feature_at, &priced, class, admit.list_limits);
        if !admit.dry_run {
            let refusal = verdict.as_ref().err();
            // What asks for nothing says nothing of who asks.
            if priced.quantities.iter().any(|quantity| *quantity > 0) {
                self.remember_request(&levels, &feature.name, refusal.map(|denied| &*denied.refusal));
            }
            self.note_unmet(verdict.as_ref().map_or_else(|denied| &denied.unmet, |verdict| &verdict.unmet));
        }
        let verdict = verdict?;
        let paid_by = verdict.cover.payments();
        let would_refuse = verdict.would_refuse();
        debug_assert_eq!(paid_by.iter().map(|payment| payment.credits.0).sum::<i64>(), priced.cost.0);
        if admit.dry_run {
            let admitted = self.would_admit(admit, &verdict, &levels, &priced, paid_by);
            return Ok(Outcome::Admitted(Box::new(Admitted { would_refuse, ..admitted })));
        }

        let id = AdmissionId(self.next_admission);
        self.next_admission += 1;
        let hold = hold_expires_at.is_some();
        let funds = self.funds(&levels);
        let mut seen = Vec::new();
        if self.keeps_facts() {
            seen = self.seen(&policy, &levels, &verdict.looks, &verdict.caps, &funds);
            verdict.complete(&mut seen, &priced, hold);
        }
        let cover = &verdict.cover;
        let asked = Asked { id, account, feature, admit, priced: &priced, cover, hold_expires_at };
        let (usage, charge) = self.note_admission(&asked);
        let debits = self.debit(&verdict, &priced, hold, charge);
        self.note_layers(usage, class, seen);
        let drawn = i128::from(verdict.cover.drawn().0);
        let (available, held) = funds.sums();
        let available = saturating_credits(available - drawn);
        let held = saturating_credits(held + if hold { drawn } else { 0 });
        debug_assert_eq!((available, held), (self.drawable(&levels, self.now), self.held(&levels)));
        let listed = verdict.looks.iter().filter(|_| admit.list_limits);
        let limits = listed.map(|look| self.status(look)).collect();
        match hold_expires_at {
            Some(expires_at) => {
                let overrun = levels
                    .iter()
                    .rev()
                    .find_map(|place| policy.plan(self.account_at(place).plan?))
                    .map_or_else(Default::default, |plan| plan.overrun);
                self.insert_hold(Hold {
                    id,
                    account,
                    feature: feature.name.clone(),
                    stamp,
                    policy: policy.revision,
                    load: self.load.version,
                    endpoint: admit.endpoint.map(Arc::from),
                    region: admit.region.map(Arc::from),
                    multipliers: multipliers(feature, &admit.attributes),
                    lines: lines(feature, &priced, &verdict.cover),
                    cost: priced.cost,
                    credits_covered: verdict.cover.credits,
                    credits_payer: verdict.cover.credits_payer,
                    draws: verdict.cover.draws,
                    debits,
                    reported: None,
                    compute_ms: None,
                    duration_ms: None,
                    expires_at,
                    latest: stamp.index,
                    overrun,
                    class,
                });
            }
            None => self.recent.keep(Resolved {
                id,
                account,
                feature: feature.name.clone(),
                status: AdmissionStatus::Settled,
                cost: priced.cost,
                paid_by: paid_by.clone(),
                uncovered: Credits::ZERO,
                stamp,
                latest: stamp.index,
                policy: policy.revision,
                load: self.load.version,
                resolved_at: self.now,
            }),
        }
        Ok(Outcome::Admitted(Box::new(Admitted {
            id,
            dry_run: false,
            cost: priced.cost,
            paid_by,
            limits,
            available,
            held,
            hold_expires_at,
            would_refuse,
        })))
    }

    /// The moment at which a hold asked for now would end.
    pub(super) fn hold_end(&self, ttl: Span, field: &str) -> Result<Millis, Box<Refusal>> {
        let ttl_max = self.policy.document.settings.hold_ttl_max;
        if ttl.0 == 0 || ttl > ttl_max {
            let detail = format!("a hold lasts from 1ms to {ttl_max}");
            return Err(Refusal::of_field(Reason::HoldTooLong, field, detail));
        }
        Ok(self.now.saturating_add(ttl))
    }

    /// Records an admission and its price, before it is debited.
    fn note_admission(&mut self, asked: &Asked<'_>) -> (Option<u32>, ChargeLink) {
        let (policy, cost) = (self.policy.revision, asked.priced.cost);
        let Asked { feature, admit, priced, cover, .. } = asked;
        let usage = self.note_usage(asked.account, || Usage {
            number: 0,
            previous: 0,
            admission: asked.id,
            account: Some(asked.account.0),
            feature: feature.name.clone(),
            units: ledger::units(feature.units.iter().map(|unit| &unit.name), &priced.quantities),
            compute_ms: None,
            duration_ms: None,
            region: admit.region.map(Arc::from),
            endpoint: admit.endpoint.map(Arc::from),
            admitted_at: None,
            earlier: None,
            hold: asked.hold_expires_at.map(|until| HoldTime { before: None, until }),
            outcome: if admit.hold_ttl.is_some() { UsageOutcome::Held } else { UsageOutcome::Settled },
            charged: cost > Credits::ZERO,
        });
        let charge = self.note_charge(usage, || Charge {
            number: 0,
            usage: 0,
            policy,
            lines: ledger::charge_lines(&priced.quantities, priced.rates.iter().copied()),
            multipliers: multipliers(feature, &admit.attributes),
            amount: cost,
            covered: covered(cover),
            drawn: cover.drawn(),
            uncovered: Credits::ZERO,
        });
        (usage, charge)
    }

    /// Debits everything that the verdict says. Nothing here can fail.
    fn debit(
        &mut self,
        verdict: &Verdict<'_>,
        priced: &Priced,
        hold: bool,
        charge: ChargeLink,
    ) -> Vec<Debit> {
        let now = self.now;
        let mut debits = Vec::new();
        for look in &verdict.looks {
            let asked = look.taken(priced, &verdict.cover, hold);
            if asked == 0 {
                continue;
            }
            let allowance = look.limit.then == Then::Credits;
            debug_assert!(
                if allowance { asked <= look.reading.room } else { look.admits(asked) },
                "a verdict never takes more than there is"
            );
            for Counted { key, amount, beyond, mark } in self.count(look, asked) {
                if hold && (amount > 0 || beyond != 0) {
                    let (account, measure) = (look.account, look.measure);
                    debits.push(Debit { account, key, measure, allowance, asked, amount, beyond, mark });
                }
            }
        }
        let drawn = verdict.cover.drawn().0.unsigned_abs();
        for cap in verdict.caps.iter().filter(|_| drawn > 0) {
            let (account, key) = (cap.account, MeterKey::SPENDING_CAP);
            let mark = self.account_mut(account).take(key, &cap.rule, now, drawn);
            if hold {
                let measure = Measure::Drawn;
                let (asked, amount, beyond) = (drawn, drawn, 0);
                debits.push(Debit { account, key, measure, allowance: false, asked, amount, beyond, mark });
            }
        }
        for draw in &verdict.cover.draws {
            let (to, why) = if hold { (Bucket::Held, Why::Held) } else { (Bucket::Spent, Why::Drawn) };
            self.post(draw.transfer(draw.amount, Bucket::Available, to, why), charge);
        }
        debits
    }

    /// Counts `asked` on a limit, and on the share of the request's class.
    pub(super) fn count(&mut self, look: &Look<'_>, asked: u64) -> impl Iterator<Item = Counted> {
        if let Some(fair) = &look.fair {
            self.share_out(fair, asked);
        }
        let now = self.now;
        let account = self.account_mut(look.account);
        let mut count = |key, rule, factor, before, (amount, carry): (u64, Carry)| {
            // What counts for itself leaves what is carried as it is.
            let mark = match factor == Factor::ONE {
                true => account.take(key, rule, now, amount),
                false => account.take_with(key, rule, now, amount, carry),
            };
            Counted { key, amount, beyond: carry.beyond(before), mark }
        };
        let counted = count(look.limit.key, &look.rule, look.factor, look.carry, look.counts_for(asked));
        let shared = look.share.as_ref();
        let shared = shared
            .map(|share| count(share.key, &share.rule, share.factor, share.carry, share.counted(asked)));
        [Some(counted), shared].into_iter().flatten()
    }

    /// What [`State::debit`] would leave, without debiting.
    fn would_admit(
        &self,
        admit: &Admit<'_>,
        verdict: &Verdict<'_>,
        levels: &Levels,
        priced: &Priced,
        paid_by: Vec<Payment>,
    ) -> Admitted {
        let hold = admit.hold_ttl.is_some();
        let listed = verdict.looks.iter().filter(|_| admit.list_limits);
        let limits = listed.map(|look| {
            let rule = &look.rule;
            let meter = self.account_at(look.account).meter(look.limit.key);
            let mut meter = meter.cloned().unwrap_or_else(|| rule.empty_meter());
            let (amount, carry) = look.counts_for(look.taken(priced, &verdict.cover, hold));
            if amount > 0 {
                rule.take(&mut meter, self.now, amount);
            }
            look.status(Some(&meter), carry, self.now)
        });
        let drawn = i128::from(verdict.cover.drawn().0);
        Admitted {
            id: AdmissionId(0),
            dry_run: true,
            cost: priced.cost,
            paid_by,
            limits: limits.collect(),
            available: saturating_credits(self.drawable_sum(levels, self.now) - drawn),
            held: saturating_credits(self.held_sum(levels) + if hold { drawn } else { 0 }),
            hold_expires_at: admit.hold_ttl.map(|ttl| self.now.saturating_add(ttl)),
            would_refuse: Vec::new(),
        }
    }

    pub(super) fn find_account(&self, path: &str) -> Result<AccountPlace, Box<Refusal>> {
        self.account_by_path.get(path).copied().ok_or_else(|| {
            let detail = match crate::decision::path::check(path) {
                Ok(()) => format!("there is no account {path}"),
                Err(error) => error.to_string(),
            };
            Refusal::of_field(Reason::AccountUnknown, "account", detail)
        })
    }
}

/// What was counted under a key: for how much, by how much that is more than its own, and where.
pub(super) struct Counted {
    key: MeterKey,
    amount: u64,
    beyond: i32,
    mark: Mark,
}

/// A request that is admitted, for the record.
struct Asked<'a> {
    id: AdmissionId,
    account: AccountPlace,
    feature: &'a Feature,
    admit: &'a Admit<'a>,
    priced: &'a Priced,
    cover: &'a Cover,
    hold_expires_at: Option<Millis>,
}

impl Draw {
    /// Moves `amount` of what is drawn.
    pub(super) fn transfer(&self, amount: Credits, from: Bucket, to: Bucket, why: Why) -> Transfer {
        Transfer { account: self.account, grant: self.sequence, amount, from, to, why }
    }
}

/// What allowances cover, by allowance.
fn covered(cover: &Cover) -> Vec<Covered> {
    let mut covered = Vec::new();
    for unit in &cover.units {
        push_covered(&mut covered, Some(&unit.payer), unit.credits);
    }
    push_covered(&mut covered, cover.credits_payer.as_ref(), cover.credits);
    covered
}

/// What a request's attributes multiply the price with: those that it names, and the defaults that
/// change the price.
fn multipliers(feature: &Feature, attributes: &[(&str, &str)]) -> Vec<Multiplier> {
    let mut multipliers = Vec::new();
    for rule in &feature.attributes {
        let named = attributes.iter().any(|(name, _)| **name == *rule.name);
        if let Some((value, ppm)) = rule.chosen(attributes).filter(|(_, ppm)| named || *ppm != Ppm::ONE.0) {
            let (attribute, value) = (rule.name.clone(), value.clone());
            multipliers.push(Multiplier { attribute, value, ppm: Ppm(*ppm) });
        }
    }
    multipliers
}

/// What a hold keeps of each unit.
fn lines(feature: &Feature, priced: &Priced, cover: &Cover) -> Vec<Line> {
    debug_assert!(feature.units.len() <= Policy::FEATURE_UNITS_MAX);
    feature
        .units
        .iter()
        .enumerate()
        .map(|(place, unit)| Line {
            unit: unit.name.clone(),
            quantity: priced.quantities[place],
            rate: priced.rates[place],
            covered: cover.of_unit(place).map_or(0, |unit| unit.quantity),
            payer: cover.of_unit(place).map(|unit| unit.payer.clone()),
        })
        .collect()
}
