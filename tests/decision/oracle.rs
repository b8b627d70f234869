//! An independent count of what was admitted, to hold against what limits allow.
//!
//! The oracle knows the policy as it was written, and what was answered. It keeps a log of every
//! amount that was admitted and not given back, and says after each command whether any limit,
//! spending cap or grant was ever exceeded by reserved amounts: in any true window, in any stretch of
//! time, at any one time. It shares no arithmetic with the core but that of credits.

use std::collections::BTreeMap;

use quorate::decision::State;
use quorate::decision::command::{Admit, PutGrant, Settle, SpendingCap};
use quorate::decision::policy::{Algorithm, Anchor, Document, LimitDocument, Quota, Then};
use quorate::decision::reply::{AdmissionId, AdmissionStatus, Admitted, Payer, Payment, ResetDone};
use quorate::units::{Credits, Millis};

/// What one account admitted at one moment, and what of it still counts.
struct Taken {
    id: AdmissionId,
    at: Millis,
    account: String,
    feature: String,
    quantities: BTreeMap<String, u64>,
    cost: u64,
    /// What allowances covered: by unit the quantity, and the credits.
    covered: BTreeMap<String, u64>,
    /// What wallets paid, by the account and the id of the grant.
    drawn: BTreeMap<(String, String), u64>,
    held: bool,
    reported: BTreeMap<String, u64>,
}

struct GrantTerms {
    credits: u64,
    from: Millis,
    until: Option<Millis>,
}

pub struct Oracle {
    policy: Document,
    /// By account, the name of its plan.
    plans: BTreeMap<String, String>,
    caps: BTreeMap<String, SpendingCap>,
    grants: BTreeMap<(String, String), GrantTerms>,
    taken: Vec<Taken>,
    /// By account and limit: how much of the log a reset cleared.
    cleared: BTreeMap<(String, String), usize>,
    /// By account and limit: where windows of first use began.
    firsts: BTreeMap<(String, String), Vec<Millis>>,
}

impl Oracle {
    pub fn new(
        policy: Document,
        plans: BTreeMap<String, String>,
        caps: BTreeMap<String, SpendingCap>,
    ) -> Oracle {
        let (grants, cleared, firsts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Oracle { policy, plans, caps, grants, taken: Vec::new(), cleared, firsts }
    }

    pub fn granted(&mut self, put: &PutGrant<'_>, effective_at: Millis) {
        let terms =
            GrantTerms { credits: put.credits.0.unsigned_abs(), from: effective_at, until: put.expires_at };
        self.grants.entry((put.account.to_owned(), put.id.to_owned())).or_insert(terms);
    }

    pub fn reset(&mut self, done: &ResetDone) {
        for limit in &done.limits {
            let key = (done.account.to_string(), limit.name.to_string());
            self.cleared.insert(key, self.taken.len());
        }
    }

    /// What is reserved by a hold of each unit: settling it with no more than this is no overrun.
    pub fn reserved(&self, id: AdmissionId) -> Option<&BTreeMap<String, u64>> {
        self.taken.iter().find(|taken| taken.id == id).map(|taken| &taken.quantities)
    }

    pub fn admitted(&mut self, at: Millis, admit: &Admit<'_>, admitted: &Admitted) -> Result<(), String> {
        let mut quantities: BTreeMap<String, u64> =
            admit.usage.iter().map(|(unit, quantity)| ((*unit).to_owned(), *quantity)).collect();
        if self.policy.features[admit.feature].units.iter().any(|unit| unit == "requests") {
            quantities.entry("requests".to_owned()).or_insert(1);
        }
        let mut taken = Taken {
            id: admitted.id,
            at,
            account: admit.account.to_owned(),
            feature: admit.feature.to_owned(),
            quantities,
            cost: admitted.cost.0.unsigned_abs(),
            covered: BTreeMap::new(),
            drawn: BTreeMap::new(),
            held: admit.hold_ttl.is_some(),
            reported: BTreeMap::new(),
        };
        self.note_payments(&mut taken, &admitted.paid_by, admit.attributes.contains(&("res", "b")));
        for key in taken.drawn.keys() {
            let Some(terms) = self.grants.get(key) else { return Err(format!("{key:?} was never granted")) };
            if at < terms.from || terms.until.is_some_and(|until| at >= until) {
                return Err(format!("{key:?} was drawn at {at}, outside its time"));
            }
        }
        self.note_first_uses(&taken);
        self.taken.push(taken);
        Ok(())
    }

    pub fn settled(&mut self, settle: &Settle<'_>) {
        let Some(taken) = self.taken.iter_mut().find(|taken| taken.id == settle.admission) else { return };
        let requests = taken.quantities.get("requests").copied();
        let told = settle.usage.iter().map(|(unit, quantity)| ((*unit).to_owned(), *quantity));
        let mut used: BTreeMap<String, u64> = told.collect();
        if let Some(requests) = requests {
            used.entry("requests".to_owned()).or_insert(requests);
        }
        for (unit, quantity) in used {
            let before = taken.reported.entry(unit).or_insert(0);
            *before = quantity.max(*before);
        }
    }

    /// Learns which holds are over, and what was given back.
    pub fn look(&mut self, state: &State) -> Result<(), String> {
        let mut log = std::mem::take(&mut self.taken);
        for taken in log.iter_mut().filter(|taken| taken.held) {
            let view = state.admission(taken.id).ok_or_else(|| format!("{} is gone", taken.id))?;
            if view.status == AdmissionStatus::Held {
                continue;
            }
            taken.held = false;
            let doubled = taken.cost > 0 && taken.quantities.contains_key("doubled");
            let (covered, drawn) = (taken.covered.clone(), taken.drawn.clone());
            self.note_payments(taken, &view.paid_by, doubled);
            keep_less(&mut taken.covered, &covered);
            keep_less(&mut taken.drawn, &drawn);
            taken.cost = taken.cost.min(view.cost.0.unsigned_abs());
            let reported = std::mem::take(&mut taken.reported);
            for (unit, quantity) in &mut taken.quantities {
                *quantity = (*quantity).min(reported.get(unit).copied().unwrap_or(0));
            }
        }
        self.taken = log;
        Ok(())
    }

    /// Whether anything was ever exceeded.
    pub fn check(&self) -> Result<(), String> {
        for (account, plan) in &self.plans {
            for limit in &self.policy.plans[plan].limits {
                self.check_limit(Some(account), None, limit)?;
            }
        }
        for (name, feature) in &self.policy.features {
            for limit in &feature.capacity {
                self.check_limit(None, Some(name), limit)?;
            }
        }
        for (account, cap) in &self.caps {
            let mut spent: BTreeMap<String, u128> = BTreeMap::new();
            for taken in self.taken.iter().filter(|taken| is_within(&taken.account, account)) {
                let period = calendar_window(taken.at, cap.period);
                let sum = taken.drawn.values().map(|amount| u128::from(*amount)).sum::<u128>();
                *spent.entry(period).or_default() += sum;
            }
            if let Some(over) = spent.iter().find(|(_, sum)| **sum > u128::from(cap.credits.0.unsigned_abs()))
            {
                return Err(format!("the cap of {account} was exceeded: {over:?}"));
            }
        }
        for (key, terms) in &self.grants {
            let drawn: u128 =
                self.taken.iter().filter_map(|taken| taken.drawn.get(key)).map(|a| u128::from(*a)).sum();
            if drawn > u128::from(terms.credits) {
                return Err(format!("{key:?} paid {drawn} of {}", terms.credits));
            }
        }
        Ok(())
    }

    fn check_limit(
        &self,
        account: Option<&str>,
        feature: Option<&str>,
        limit: &LimitDocument,
    ) -> Result<(), String> {
        if limit.shadow {
            return Ok(());
        }
        let quota = u128::from(quota_of(limit, &limit.quota));
        let key = account.map(|account| (account.to_owned(), limit.name.clone()));
        let cleared = key.and_then(|key| self.cleared.get(&key).copied()).unwrap_or(0);
        let counted = self.taken.iter().skip(cleared).filter(|taken| {
            account.is_none_or(|account| is_within(&taken.account, account))
                && feature.is_none_or(|feature| taken.feature == feature)
                && limit.features.as_ref().is_none_or(|features| features.contains(&taken.feature))
        });
        let over = |sum: u128, allowed: u128, at: Millis| {
            if sum <= allowed {
                return Ok(());
            }
            let whose = account.or(feature).unwrap_or("?");
            Err(format!("{} of {whose} let {sum} of {allowed} pass at {at}: {limit:?}", limit.name))
        };
        if limit.algorithm == Algorithm::Slots {
            let held = counted.filter(|taken| taken.held).count() as u128;
            return over(held, quota, Millis(0));
        }
        let amounts: Vec<(Millis, u128)> = counted
            .map(|taken| (taken.at, u128::from(amount(taken, limit))))
            .filter(|(_, amount)| *amount > 0)
            .collect();
        let window = limit.window.map_or(0, |window| u128::from(window.0));
        match (limit.algorithm, limit.anchor) {
            (Algorithm::TokenBucket, _) => {
                let burst = limit.burst.as_ref().map_or(quota, |burst| u128::from(quota_of(limit, burst)));
                for (place, (from, _)) in amounts.iter().enumerate() {
                    let mut sum = 0;
                    for (until, amount) in &amounts[place..] {
                        sum += amount;
                        let refilled = quota * u128::from(until.0 - from.0);
                        over(sum * window, burst * window + refilled, *until)?;
                    }
                }
            }
            (Algorithm::SlidingWindow, _) => {
                for (until, _) in &amounts {
                    let within = |at: Millis| at <= *until && u128::from(until.0 - at.0) < window;
                    let sum = amounts.iter().filter(|(at, _)| within(*at)).map(|(_, amount)| amount).sum();
                    over(sum, quota, *until)?;
                }
            }
            (_, anchor) => {
                let mut sums: BTreeMap<String, u128> = BTreeMap::new();
                for (at, amount) in &amounts {
                    let window = match (anchor, limit.period) {
                        (Some(Anchor::Calendar), Some(period)) => calendar_window(*at, period),
                        (Some(Anchor::FirstUse), _) => {
                            let key = (account.or(feature).unwrap_or("?").to_owned(), limit.name.clone());
                            let starts = self.firsts.get(&key).map_or(&[][..], Vec::as_slice);
                            starts
                                .iter()
                                .rev()
                                .find(|start| **start <= *at)
                                .map_or_else(String::new, Millis::to_string)
                        }
                        _ => (u128::from(at.0) / window).to_string(),
                    };
                    let sum = sums.entry(window).or_default();
                    *sum += amount;
                    over(*sum, quota, *at)?;
                }
            }
        }
        Ok(())
    }

    /// Begins windows of first use where this is one.
    fn note_first_uses(&mut self, taken: &Taken) {
        let of_plans = self.plans.iter().filter(|(account, _)| is_within(&taken.account, account));
        let of_plans = of_plans.flat_map(|(account, plan)| {
            self.policy.plans[plan].limits.iter().map(move |limit| (account.clone(), limit))
        });
        let capacity = &self.policy.features[&taken.feature].capacity;
        let limits = of_plans.chain(capacity.iter().map(|limit| (taken.feature.clone(), limit)));
        for (whose, limit) in limits.filter(|(_, limit)| limit.anchor == Some(Anchor::FirstUse)) {
            let counts = limit.features.as_ref().is_none_or(|features| features.contains(&taken.feature));
            if !counts || amount(taken, limit) == 0 {
                continue;
            }
            let starts = self.firsts.entry((whose, limit.name.clone())).or_default();
            let window = limit.window.map_or(0, |window| window.0);
            if starts.last().is_none_or(|start| taken.at.0 >= start.0 + window) {
                starts.push(taken.at);
            }
        }
    }

    /// Reads who paid, as quantities where an allowance is of a unit.
    fn note_payments(&self, taken: &mut Taken, payments: &[Payment], doubled: bool) {
        taken.covered.clear();
        taken.drawn.clear();
        if doubled {
            taken.quantities.insert("doubled".to_owned(), 0);
        }
        for payment in payments {
            let micros = payment.credits.0.unsigned_abs();
            match &payment.payer {
                Payer::Grant { level, id } => {
                    let account = ancestor(&taken.account, *level);
                    *taken.drawn.entry((account.to_owned(), id.to_string())).or_default() += micros;
                }
                Payer::OtherGrants { .. } => unreachable!("no account here has so many grants"),
                Payer::Limit { level, name } => {
                    let plan = &self.plans[ancestor(&taken.account, *level)];
                    let limits = &self.policy.plans[plan].limits;
                    let limit =
                        limits.iter().find(|limit| *limit.name == **name).expect("a payer is a limit");
                    let unit = limit.unit.clone().expect("an allowance has a unit");
                    let rate = match self.policy.features[&taken.feature].price.get(&unit) {
                        Some(quorate::decision::policy::Price::Each(Credits(micros))) => {
                            micros.unsigned_abs()
                        }
                        _ => 1,
                    };
                    let rate = if unit == "credits" { 1 } else { rate * (1 + u64::from(doubled)) };
                    *taken.covered.entry(unit).or_default() += micros / rate;
                }
            }
        }
    }
}

/// How much a limit counts of what was taken.
fn amount(taken: &Taken, limit: &LimitDocument) -> u64 {
    let unit = limit.unit.as_deref().unwrap_or_default();
    match (limit.then, unit) {
        (Then::Credits, unit) => taken.covered.get(unit).copied().unwrap_or(0),
        (Then::Refuse, "credits") => taken.cost,
        (Then::Refuse, unit) => taken.quantities.get(unit).copied().unwrap_or(0),
    }
}

fn quota_of(limit: &LimitDocument, quota: &Quota) -> u64 {
    let scale = if limit.unit.as_deref() == Some("credits") { 1_000_000 } else { 1 };
    match quota {
        Quota::Whole(whole) => whole * scale,
        Quota::Text(text) => text.parse::<u64>().expect("quotas here are whole") * scale,
    }
}

fn keep_less<K: Ord>(now: &mut BTreeMap<K, u64>, before: &BTreeMap<K, u64>) {
    now.retain(|key, _| before.contains_key(key));
    for (key, amount) in now {
        *amount = (*amount).min(before[key]);
    }
}

/// Whether `account` is `above` or beneath it.
fn is_within(account: &str, above: &str) -> bool {
    account.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

fn ancestor(account: &str, level: u8) -> &str {
    let ends = account.match_indices(':').map(|(place, _)| place).chain([account.len()]);
    ends.take(usize::from(level)).last().map_or("", |end| &account[..end])
}

/// A name for the calendar period in UTC that holds `at`, read off its text.
fn calendar_window(at: Millis, period: quorate::decision::command::Period) -> String {
    use quorate::decision::command::Period;
    let text = at.to_string();
    match period {
        Period::Day => text[..10].to_owned(),
        Period::Month => text[..7].to_owned(),
        Period::Year => text[..4].to_owned(),
        // 1970 began on a Thursday.
        Period::Week => ((at.0 / 86_400_000 + 3) / 7).to_string(),
    }
}
