//! `quorate account` and `quorate grant`: who may use the cluster, and with which credits.

use clap::Subcommand;

use crate::cli::arguments::CreditsPerPeriod;
use crate::cli::datasets::{self, PageArgs};
use crate::cli::explain;
use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global, receipt};
use crate::client::{
    AccountState, AccountUpdate, AccountView, AdaptiveView, BalancesView, GrantRequest, GrantSource,
    GrantView, MovedView, ResetRequest, ResetView, RevokeRequest, SpendingCap, TopUpRule,
};
use crate::units::{Credits, Millis, Ppm};

#[derive(Debug, Subcommand)]
pub(super) enum AccountCommand {
    /// Create an account, or change the named parts of it
    Put {
        /// Such as acme:video:u17, which is under acme:video, which is under acme
        account: String,
        /// Its plan
        #[arg(long)]
        plan: Option<String>,
        /// Take its plan away
        #[arg(long, conflicts_with = "plan")]
        no_plan: bool,
        /// The most that it and all under it may draw from wallets: 100/month
        #[arg(long, value_name = "CREDITS/PERIOD")]
        cap: Option<CreditsPerPeriod>,
        /// Take its spending cap away
        #[arg(long, conflicts_with = "cap")]
        no_cap: bool,
        /// Open it or close it: a closed account refuses admissions and keeps its books
        #[arg(long, value_enum)]
        state: Option<StateArgument>,
        #[command(flatten)]
        top_up: TopUpArgs,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Clear what limits of its plan have counted, or put resets by for later
    Reset {
        /// Such as acme:video:u17
        account: String,
        /// A limit to clear; may be given again. All that count over a window when absent
        #[arg(long = "limit", value_name = "NAME")]
        limits: Vec<String>,
        /// Use one of the resets that were put by
        #[arg(long)]
        banked: bool,
        /// Clear nothing, and put so many resets by
        #[arg(long, value_name = "RESETS", conflicts_with_all = ["banked", "limits"])]
        bank: Option<u32>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Tell why a request was admitted or refused, and what would come of it now
    Explain {
        /// Such as acme:video:u17
        account: String,
        /// One of its admissions, such as adm_2f, or refusals, such as ref_2f_0; what it asked for last when
        /// absent
        admission: Option<String>,
    },
    /// Show the postings of an account's wallet, newest first
    Ledger {
        /// Such as acme:video:u17
        account: String,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show an account: its plan, limits, balances, grants and holds
    Show {
        /// Such as acme:video:u17
        account: String,
    },
}

/// When its wallet is to be topped up.
#[derive(Debug, clap::Args)]
pub(super) struct TopUpArgs {
    /// Ask for a top-up when its own wallet has less than this
    #[arg(long = "top-up-threshold", value_name = "CREDITS", requires = "target")]
    threshold: Option<Credits>,
    /// As far as it is to be topped up
    #[arg(long = "top-up-target", value_name = "CREDITS", requires = "threshold")]
    target: Option<Credits>,
    /// The most that may be asked for in a calendar month (UTC)
    #[arg(long = "top-up-monthly-cap", value_name = "CREDITS", requires = "threshold")]
    monthly_cap: Option<Credits>,
    /// As much is granted ahead of each payment; nothing when absent
    #[arg(long = "top-up-bridge", value_name = "CREDITS", requires = "threshold")]
    bridge: Option<Credits>,
    /// Ask for no more top-ups
    #[arg(long = "no-top-up", conflicts_with = "threshold")]
    none: bool,
}

impl TopUpArgs {
    fn change(&self) -> Option<Option<TopUpRule>> {
        let rule = self.threshold.zip(self.target).map(|(threshold, target)| {
            let bridge = self.bridge.unwrap_or(Credits::ZERO);
            TopUpRule { threshold, target, monthly_cap: self.monthly_cap, bridge }
        });
        change(rule, self.none)
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum StateArgument {
    Open,
    Closed,
}

impl From<StateArgument> for AccountState {
    fn from(state: StateArgument) -> AccountState {
        match state {
            StateArgument::Open => AccountState::Open,
            StateArgument::Closed => AccountState::Closed,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum SourceArgument {
    Plan,
    Promotion,
    Purchase,
    Adjustment,
}

impl From<SourceArgument> for GrantSource {
    fn from(source: SourceArgument) -> GrantSource {
        match source {
            SourceArgument::Plan => GrantSource::Plan,
            SourceArgument::Promotion => GrantSource::Promotion,
            SourceArgument::Purchase => GrantSource::Purchase,
            SourceArgument::Adjustment => GrantSource::Adjustment,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum GrantCommand {
    /// Add credits; the same id with the same content adds nothing more
    Add {
        /// Whose wallet it goes into, such as acme:video:u17
        account: String,
        /// Names the grant in its wallet for ever, such as purchase-81
        id: String,
        /// A decimal, such as 100 or 12.5
        credits: Credits,
        /// Where the credits come from; noted in the books, and no matter for the order of drawing
        #[arg(long, value_enum, default_value = "purchase")]
        source: SourceArgument,
        /// Grants are drawn from the lowest number up; 100 when absent
        #[arg(long)]
        priority: Option<u32>,
        /// When it can first be drawn, such as 2027-11-22T00:00:00Z; at once when absent
        #[arg(long, value_name = "MOMENT")]
        effective_at: Option<Millis>,
        /// When what is left of it is lost; never when absent
        #[arg(long, value_name = "MOMENT")]
        expires_at: Option<Millis>,
        /// Why, for the record; an adjustment must have one
        #[arg(long)]
        reason: Option<String>,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Take credits of a grant back; what holds keep of it follows as it comes back
    Revoke {
        /// Whose wallet it is in, such as acme:video:u17
        account: String,
        /// The id of the grant
        id: String,
        /// So many, such as 12.5; all that is left when absent
        #[arg(long)]
        credits: Option<Credits>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
}

pub(super) async fn run(command: AccountCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let answer = match command {
        AccountCommand::Explain { account, admission } => {
            return explain::run(&account, admission.as_deref(), global).await;
        }
        AccountCommand::Ledger { account, page } => return datasets::ledger(&account, &page, global).await,
        AccountCommand::Show { account } => client.account(&account).await?,
        AccountCommand::Reset { account, limits, banked, bank, reason, key } => {
            let limits = Some(limits.as_slice()).filter(|limits| !limits.is_empty());
            let request = ResetRequest { limits, banked, bank, reason: &reason };
            let answer = client.reset(key.as_deref(), &account, &request).await?;
            return Ok(Done::ok(match global.json {
                true => output::json(&answer.body),
                false => reset(&answer.value, answer.replayed),
            }));
        }
        AccountCommand::Put { account, plan, no_plan, cap, no_cap, state, top_up, key } => {
            let cap = cap.as_ref().map(|cap| SpendingCap { credits: cap.credits, period: &cap.period });
            let update = AccountUpdate {
                plan: change(plan.as_deref(), no_plan),
                spending_cap: change(cap, no_cap),
                state: state.map(AccountState::from),
                top_up: top_up.change(),
            };
            client.put_account(key.as_deref(), &account, &update).await?
        }
    };
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => view(&answer.value),
    }))
}

/// What the arguments say of one part: set it, clear it, or leave it.
fn change<T>(set: Option<T>, clear: bool) -> Option<Option<T>> {
    match (set, clear) {
        (Some(value), _) => Some(Some(value)),
        (None, true) => Some(None),
        (None, false) => None,
    }
}

pub(super) async fn run_grant(command: GrantCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let (body, text) = match command {
        GrantCommand::Add {
            account,
            id,
            credits,
            source,
            priority,
            effective_at,
            expires_at,
            reason,
            key,
        } => {
            let (id, source, reason) = (id.as_str(), source.into(), reason.as_deref());
            let grant = GrantRequest { id, source, credits, priority, effective_at, expires_at, reason };
            let answer = client.add_grant(key.as_deref(), &account, &grant).await?;
            let again = if answer.replayed { " (it was there already)" } else { "" };
            let mut text =
                format!("granted: {} to {account}{again}\n", answer.value.credits.granted.in_words());
            text.push_str(&grants(std::slice::from_ref(&answer.value), 2));
            (answer.body, text)
        }
        GrantCommand::Revoke { account, id, credits, reason, key } => {
            let revoke = RevokeRequest { credits, reason: &reason };
            let answer = client.revoke_grant(key.as_deref(), &account, &id, &revoke).await?;
            let again = if answer.replayed { " (the first answer to this key, again)" } else { "" };
            let mut text = format!("revoked: {} of {id}{again}\n", answer.value.revoked.in_words());
            if answer.value.awaited > Credits::ZERO {
                put(
                    &mut text,
                    format_args!("  and {} that holds keep, as they come back\n", answer.value.awaited),
                );
            }
            text.push_str(&grants(std::slice::from_ref(&answer.value.grant), 2));
            (answer.body, text)
        }
    };
    Ok(Done::ok(if global.json { output::json(&body) } else { text }))
}

fn reset(done: &ResetView, replayed: bool) -> String {
    let again = if replayed { " (the first answer to this key, again)" } else { "" };
    let did = if done.limits.is_empty() { "nothing cleared" } else { "reset" };
    let mut text = format!("{did}: {}{again}\n", done.account);
    let mut table = Table::new(&[2]);
    for limit in &done.limits {
        table.row([limit.name.clone(), limit.unit.clone(), format!("{} cleared", limit.used)]);
    }
    text.push_str(&table.lines(2));
    put(&mut text, format_args!("  resets put by: {}\n", done.banked_resets));
    text
}

fn view(account: &AccountView) -> String {
    let mut text = format!("{}: {}\n", account.account, account.state);
    let mut facts = Table::default();
    facts.row(["plan".into(), account.plan.clone().unwrap_or_else(|| "none".into())]);
    if let (Some(class), Some(weight)) = (&account.class, account.weight) {
        facts.row(["class".into(), format!("{class}, with a weight of {weight}")]);
    }
    if let Some(cap) = &account.spending_cap {
        facts.row(["cap".into(), format!("{} a {}", cap.credits.in_words(), cap.period)]);
    }
    facts.row(["credits".into(), balances(&account.credits)]);
    if account.owed > Credits::ZERO {
        facts.row(["owed".into(), format!("{}, paid back first", account.owed.in_words())]);
    }
    if let Some(rule) = &account.top_up {
        let mut shown = format!("below {} to {}", rule.threshold, rule.target);
        if let Some(cap) = rule.monthly_cap {
            put(&mut shown, format_args!(", at most {cap} a month"));
        }
        if rule.bridge > Credits::ZERO {
            put(&mut shown, format_args!(", {} ahead", rule.bridge));
        }
        if let Some(pending) = &account.top_up_pending {
            put(&mut shown, format_args!("; {pending} is pending"));
        }
        facts.row(["top-up".into(), shown]);
    }
    if account.banked_resets > 0 {
        facts.row(["resets".into(), format!("{} put by", account.banked_resets)]);
    }
    text.push_str(&facts.lines(2));
    if !account.limits.is_empty() {
        text.push_str(&output::limits(&account.limits, None, 2));
    }
    text.push_str(&adaptive(&account.adaptive));
    if !account.grants.is_empty() {
        text.push_str(&grants(&account.grants, 2));
        if account.grants_total > account.grants.len() as u64 {
            put(&mut text, format_args!("  grants in all: {}\n", account.grants_total));
        }
    }
    let mut holds = Table::new(&[2]);
    for hold in &account.holds {
        let expires = format!("until {}", hold.expires_at);
        holds.row([hold.admission.clone(), hold.feature.clone(), hold.cost.to_string(), expires]);
    }
    if !holds.is_empty() {
        put(&mut text, format_args!("  holds: {}\n", account.holds_total.max(account.holds.len() as u64)));
        text.push_str(&holds.lines(4));
    }
    text
}

/// What moves the adaptive guards now: the policy's quota, each factor, and what they come to.
fn adaptive(guards: &[AdaptiveView]) -> String {
    let mut table = Table::new(&[2, 3, 4, 5, 6]);
    table.row(["moved now", "feature", "base", "load", "trust", "factor", "quota", "why"].map(str::to_owned));
    let moved = guards.iter().flat_map(|guard| guard.features.iter().map(move |moved| (guard, moved)));
    let mut any = false;
    for (guard, MovedView { feature, load, trust, fault, factor, quota }) in moved {
        any = true;
        let mut why = Vec::new();
        if *load != Ppm::ONE {
            why.push("load".to_owned());
        }
        match fault {
            Some(fault) => why.push(receipt::fault_words(fault).to_owned()),
            None if *trust > Ppm::ONE => why.push("responsible use".to_owned()),
            None => {}
        }
        table.row([
            guard.name.clone(),
            feature.clone(),
            guard.base_quota.to_string(),
            load.to_string(),
            trust.to_string(),
            factor.to_string(),
            quota.to_string(),
            why.join("; "),
        ]);
    }
    if any { table.lines(2) } else { String::new() }
}

fn balances(credits: &BalancesView) -> String {
    let BalancesView { granted, available, scheduled, held, spent, expired, revoked } = credits;
    let scheduled = match scheduled.is_zero() {
        true => String::new(),
        false => format!(" + {scheduled} scheduled"),
    };
    format!(
        "{granted} granted = {available} available{scheduled} + {held} held + {spent} spent + {expired} expired + {revoked} revoked"
    )
}

fn grants(grants: &[GrantView], indent: usize) -> String {
    let mut table = Table::new(&[2, 3, 4, 5, 6, 7, 8]);
    let head = [
        "grant",
        "source",
        "priority",
        "granted",
        "available",
        "held",
        "spent",
        "expired",
        "revoked",
        "expires",
    ];
    table.row(head.map(str::to_owned));
    for grant in grants {
        table.row([
            grant.id.clone(),
            grant.source.clone(),
            grant.priority.to_string(),
            grant.credits.granted.to_string(),
            grant.credits.available.to_string(),
            grant.credits.held.to_string(),
            grant.credits.spent.to_string(),
            grant.credits.expired.to_string(),
            grant.credits.revoked.to_string(),
            grant.expires_at.map_or_else(|| "never".into(), |at| at.to_string()),
        ]);
    }
    let mut text = table.lines(indent);
    for later in grants.iter().filter(|grant| !grant.credits.scheduled.is_zero()) {
        let GrantView { id, effective_at, credits, .. } = later;
        let scheduled = credits.scheduled;
        put(
            &mut text,
            format_args!("{:indent$}{id}: {scheduled} scheduled, to be drawn from {effective_at} on\n", ""),
        );
    }
    text
}
