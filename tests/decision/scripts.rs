//! Golden scripts: scenarios as stories, each in a file whose name says what happens.
//!
//! A script writes a policy line by line, puts it, and then asks for things at moments of its choice.
//!
//! | command | does |
//! |---|---|
//! | `at TIME`, `wait SPAN` | sets the stamp of the commands that follow; nothing is applied |
//! | `setting NAME=VALUE` | writes a setting into the policy's draft |
//! | `feature NAME units="a,b"` | a feature |
//! | `price FEATURE UNIT=CREDITS` | a price for each, or `3/1000`: three for each thousand |
//! | `attribute FEATURE NAME VALUE=MULTIPLIER… [default=VALUE]` | what changes the price |
//! | `plan NAME [overrun=RULE] [class=CLASS]` | a plan; `overdraft/50` lends up to 50 credits |
//! | `limit PLAN NAME FIELD=VALUE…`, `capacity FEATURE NAME FIELD=VALUE…` | a limit; one of the same name is replaced |
//! | `plan_grant PLAN NAME credits=N priority=N days=N` or `every=WORD [day=N]`, `[share=] [cap=]` | a recurring grant; one of the same name is replaced |
//! | `load FEATURE FIELD=VALUE…`, `shares FEATURE CLASS=SHARE…` | how load moves a feature; what classes can count on |
//! | `drop plan NAME`, `drop feature NAME`, `drop limit PLAN NAME`, `drop plan_grant PLAN NAME` | takes it out of the draft |
//! | `policy [if_revision=N] [document=JSON]` | puts the draft, or another document |
//! | `account PATH [plan=NAME] [cap=CREDITS/PERIOD] [state=STATE] [topup=THRESHOLD/TARGET[/MONTHLY_CAP]] [bridge=N]` | `-` clears |
//! | `grant PATH ID CREDITS [source=] [priority=] [effective=] [expires=] [reason=]` | adds a grant |
//! | `revoke PATH ID [credits=CREDITS] reason=REASON` | takes a grant back, or a part of it |
//! | `admit PATH FEATURE [UNIT=N]… [ATTRIBUTE=VALUE]… [hold=SPAN] [dry_run] [endpoint=] [region=] [class=]` | asks; `max` is the largest number |
//! | `settle ID [UNIT=N]… [partial] [compute_ms=N] [duration_ms=N]`, `extend ID SPAN`, `release ID` | what becomes of a hold |
//! | `reset PATH [limits=a,b] [banked] [bank=N] reason=REASON` | clears limits, or puts resets by |
//! | `confirm ID [credits=] [reason=]`, `fail ID reason=REASON [retry_after=SPAN]`, `delivered ID` | what becomes of a top-up |
//! | `signal FEATURE SOURCE [region=] [utilisation=] [queue=] [latency=] [ttl=]` | a backend reports |
//! | `tick` | moves time on to the stamp |
//! | `show PATH`, `show ID`, `show policy`, `show topups`, `show feature NAME` | looks |
//! | `facts` | the facts since they were last shown |
//!
//! Any command that is applied takes `key=KEY`. Every command is applied under the laws of
//! [`crate::laws`]; a law that is broken fails the script.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use quorate::decision::Trust;
use quorate::decision::command::{
    AccountState, Admit, Change, Class, Command, ConfirmTopUp, Extend, FailTopUp, Key, Period, PutAccount,
    PutGrant, PutPolicy, Release, Request, Reset, ResetBy, Revoke, Settle, Signal, Signals, Source,
    SpendingCap, Stamp, TopUp, TopUpDelivered,
};
use quorate::decision::reply::{
    AdmissionId, BalancesView, Layer, LimitStatus, Outcome, PaceVerdict, Payer, Payment, Reply, Settled,
    SharerView, TopUpId, TopUpView,
};
use quorate::units::{Credits, Millis, Span};
use serde_json::{Map, Value, json};

use crate::laws::Lawful;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Scenario {
    lawful: Lawful,
    /// How many of the facts were shown.
    shown: usize,
    at: Millis,
    index: u64,
    draft: Value,
}

/// The arguments of one command, by kind, in order.
struct Arguments {
    positional: Vec<String>,
    named: Vec<(String, String)>,
}

impl Arguments {
    fn of(command: &goldenscript::Command) -> Arguments {
        let mut arguments = Arguments { positional: Vec::new(), named: Vec::new() };
        for argument in &command.args {
            match argument {
                goldenscript::Argument::KeyValue(name, value) => {
                    arguments.named.push((name.clone(), value.clone()));
                }
                goldenscript::Argument::Positional(value) => arguments.positional.push(value.clone()),
                other => unreachable!("an argument is named or not: {other}"),
            }
        }
        arguments
    }

    fn next(&mut self, what: &str) -> Result<String> {
        if self.positional.is_empty() {
            return Err(format!("expected {what}").into());
        }
        Ok(self.positional.remove(0))
    }

    fn flag(&mut self, name: &str) -> bool {
        let place = self.positional.iter().position(|argument| argument == name);
        place.map(|place| self.positional.remove(place)).is_some()
    }

    fn named(&mut self, name: &str) -> Option<String> {
        let place = self.named.iter().position(|(known, _)| known == name)?;
        Some(self.named.remove(place).1)
    }

    fn parsed<T: std::str::FromStr<Err: Error + 'static>>(&mut self, name: &str) -> Result<Option<T>> {
        Ok(self.named(name).map(|text| text.parse()).transpose()?)
    }

    /// The rest as an object of texts.
    fn texts(&mut self) -> Map<String, Value> {
        self.named.drain(..).map(|(name, value)| (name, Value::String(value))).collect()
    }

    /// The rest as an object: numbers where the document has numbers.
    fn fields(&mut self) -> Map<String, Value> {
        let field = |(name, value): (String, String)| {
            let number = matches!(name.as_str(), "slices" | "day" | "utc_offset_minutes" | "admissions_kept")
                || name.ends_with("_max") && name.contains("keys");
            let value = match value.parse::<i64>() {
                Ok(value) if number => json!(value),
                _ if name == "shadow" => json!(value == "true"),
                _ if name == "features" => value.split(',').map(str::to_owned).collect(),
                _ => json!(value),
            };
            (name, value)
        };
        self.named.drain(..).map(field).collect()
    }

    fn done(self) -> Result<()> {
        if self.positional.is_empty() && self.named.is_empty() {
            return Ok(());
        }
        Err(format!("unexpected {:?} {:?}", self.positional, self.named).into())
    }
}

fn amount(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

fn word<T: serde::de::DeserializeOwned>(text: String) -> Result<T> {
    Ok(serde_json::from_value(Value::String(text))?)
}

fn named_limit(name: String, fields: Map<String, Value>) -> Value {
    let mut limit = Map::from_iter([("name".to_owned(), Value::String(name))]);
    limit.extend(fields);
    Value::Object(limit)
}

/// Puts `limit` in the place of the one with its name, or behind all.
fn put_limit(limits: &mut Value, limit: Value) {
    let limits = limits.as_array_mut().expect("limits are a list");
    match limits.iter_mut().find(|other| other["name"] == limit["name"]) {
        Some(other) => *other = limit,
        None => limits.push(limit),
    }
}

impl Scenario {
    fn new() -> Scenario {
        Scenario {
            lawful: Lawful::new(),
            shown: 0,
            at: "2027-01-01T00:00:00Z".parse().expect("a time"),
            index: 0,
            draft: json!({ "settings": {}, "features": {}, "plans": {} }),
        }
    }

    fn part(&mut self, kind: &str, name: &str) -> Result<&mut Value> {
        let part = self.draft[kind].get_mut(name);
        part.ok_or_else(|| format!("the draft has nothing named {name} among its {kind}").into())
    }

    /// Writes to the policy's draft: whether `name` is a command that does.
    fn draft(&mut self, name: &str, arguments: &mut Arguments) -> Result<bool> {
        match name {
            "setting" => {
                for (name, value) in arguments.fields() {
                    self.draft["settings"][name] = value;
                }
            }
            "feature" => {
                let name = arguments.next("a feature")?;
                let units = arguments.named("units").ok_or("expected units")?;
                let units: Vec<&str> = units.split(',').collect();
                self.draft["features"][name] =
                    json!({ "units": units, "price": {}, "attributes": {}, "capacity": [] });
            }
            "price" => {
                let feature = arguments.next("a feature")?;
                for (unit, price) in arguments.named.drain(..) {
                    let price = match price.split_once('/') {
                        Some((credits, per)) => json!({ "credits": credits, "per": per.parse::<u64>()? }),
                        None => json!(price),
                    };
                    self.part("features", &feature)?["price"][unit] = price;
                }
            }
            "attribute" => {
                let (feature, name) = (arguments.next("a feature")?, arguments.next("an attribute")?);
                let default = arguments.named("default");
                let mut attribute = json!({ "multipliers": arguments.texts() });
                if let Some(default) = default {
                    attribute["default"] = json!(default);
                }
                self.part("features", &feature)?["attributes"][name] = attribute;
            }
            "plan" => {
                let mut plan = json!({ "limits": [], "grants": [] });
                let name = arguments.next("a plan")?;
                if let Some(class) = arguments.named("class") {
                    plan["class"] = json!(class);
                }
                if let Some(weight) = arguments.named("weight") {
                    plan["weight"] = json!(weight.parse::<u32>()?);
                }
                if let Some(overrun) = arguments.named("overrun") {
                    plan["overrun"] = match overrun.split_once('/') {
                        Some((rule, credits)) => json!({ rule: { "credits": credits } }),
                        None => json!(overrun),
                    };
                }
                self.draft["plans"][name] = plan;
            }
            "trust" => {
                let plan = arguments.next("a plan")?;
                self.part("plans", &plan)?["trust"] = Value::Object(arguments.texts());
            }
            "adaptive" => {
                let (plan, limit) = (arguments.next("a plan")?, arguments.next("a limit")?);
                let limits = self.part("plans", &plan)?["limits"].as_array_mut().expect("a list");
                let found = limits.iter_mut().find(|known| known["name"] == *limit);
                found.ok_or("expected a limit of the plan")?["adaptive"] = Value::Object(arguments.texts());
            }
            "fair" => {
                let feature = arguments.next("a feature")?;
                self.part("features", &feature)?["fair"] = json!(true);
            }
            "limit" => {
                let (plan, name) = (arguments.next("a plan")?, arguments.next("a name")?);
                let limit = named_limit(name, arguments.fields());
                put_limit(&mut self.part("plans", &plan)?["limits"], limit);
            }
            "plan_grant" => {
                let (plan, name) = (arguments.next("a plan")?, arguments.next("a name")?);
                let number = |text: String| Ok::<Value, std::num::ParseIntError>(json!(text.parse::<u32>()?));
                let mut grant = json!({ "name": name });
                if let Some(days) = arguments.named("days") {
                    grant["every"] = json!({ "days": number(days)? });
                }
                let (share, cap) = (arguments.named("share"), arguments.named("cap"));
                if let Some(share) = share {
                    grant["rollover"] = json!({ "share": share });
                }
                if let Some(cap) = cap {
                    grant["rollover"]["cap"] = json!(cap);
                }
                for (field, value) in arguments.named.drain(..) {
                    let is_number = matches!(field.as_str(), "priority" | "day");
                    grant[field] = if is_number { number(value)? } else { json!(value) };
                }
                put_limit(&mut self.part("plans", &plan)?["grants"], grant);
            }
            "capacity" => {
                let (feature, name) = (arguments.next("a feature")?, arguments.next("a name")?);
                let limit = named_limit(name, arguments.fields());
                put_limit(&mut self.part("features", &feature)?["capacity"], limit);
            }
            "load" => {
                let feature = arguments.next("a feature")?;
                let mut load = arguments.texts();
                if let Some(depth) = load.get_mut("queue_depth_max") {
                    *depth = json!(depth.as_str().unwrap_or_default().parse::<u64>()?);
                }
                self.part("features", &feature)?["load"] = Value::Object(load);
            }
            "shares" => {
                let feature = arguments.next("a feature")?;
                self.part("features", &feature)?["shares"] = Value::Object(arguments.texts());
            }
            "drop" => {
                let (kind, name) = (arguments.next("plan, feature or limit")?, arguments.next("a name")?);
                if kind == "limit" || kind == "plan_grant" {
                    let limit = arguments.next("a limit or grant")?;
                    let part = if kind == "limit" { "limits" } else { "grants" };
                    let limits = &mut self.part("plans", &name)?[part];
                    limits.as_array_mut().expect("limits are a list").retain(|known| known["name"] != limit);
                } else {
                    let parts = self.draft[format!("{kind}s")].as_object_mut().ok_or("no such kind")?;
                    parts.remove(&name);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn apply(&mut self, command: Command<'_>, key: Option<String>) -> Result<String> {
        let asked = format!("{command:?}");
        let key = key.as_deref().map(|key| Key { key, fingerprint: fingerprint(&asked) });
        self.index += 1;
        let stamp = Stamp { at: self.at, term: 1, index: self.index, position: 0 };
        let reply = self.lawful.apply(stamp, &Request { key, command })?;
        Ok(told(&reply))
    }

    fn show_feature(&self, feature: &str) -> Result<String> {
        let Some(view) = self.lawful.state().feature(feature) else {
            return Ok(format!("{feature} is not to be found\n"));
        };
        let pressure = view.pressure.map_or_else(|| "unknown".to_owned(), |pressure| pressure.to_string());
        let mut text =
            format!("load {}: {feature} at {}, pressure {pressure}\n", view.load_version, view.factor);
        for (class, factor) in Class::ALL.iter().zip(view.by_class) {
            writeln!(text, "  {class:?} {factor}")?;
        }
        for signal in &view.signals {
            writeln!(text, "  {}/{} until {}", signal.region, signal.source, signal.expires_at)?;
        }
        Ok(text)
    }

    fn show_sharers(&self, feature: &str) -> Result<String> {
        let mut text = String::new();
        for view in self.lawful.state().sharers(feature) {
            let class = view.class.map_or_else(String::new, |class| format!(" for {class:?}"));
            let part = view
                .fair_part
                .map_or_else(|| "enough for all".to_owned(), |part| format!("a fair part is {part}"));
            let SharerView { limit, unit, account, weight, has, asks, .. } = view;
            writeln!(
                text,
                "{limit}{class}: {account} by {weight} has {has} {unit} and asks for {asks}, {part}"
            )?;
        }
        Ok(text)
    }

    fn show_behaviour(&self, account: &str) -> Result<String> {
        let mut text = String::new();
        for behaviour in self.lawful.state().behaviour(account) {
            let (Trust { factor, fault }, past) = (behaviour.trust, behaviour.past);
            let fault = fault.map_or_else(String::new, |fault| format!(" for {fault:?}"));
            writeln!(text, "{}: trust {factor}{fault}, load {}", behaviour.feature, behaviour.by_load)?;
            writeln!(text, "  {} an hour, usually {}", past.recent_per_hour, past.usual_per_hour)?;
            writeln!(text, "  refused {}, too early {}", past.refused, past.early)?;
            writeln!(text, "  misjudged {}, abandoned {}", past.misjudged, past.abandoned)?;
        }
        Ok(text)
    }

    fn show(&self, what: &str) -> Result<String> {
        let state = self.lawful.state();
        let mut text = String::new();
        if what == "policy" {
            let (revision, document) = state.policy();
            let plans: Vec<&str> = document.plans.keys().map(String::as_str).collect();
            writeln!(text, "policy revision {revision}, plans {}", plans.join(", "))?;
        } else if what == "topups" {
            for view in state.top_ups(None, None, None, 100) {
                writeln!(text, "{}", top_up(&view))?;
            }
        } else if let Ok(id) = what.parse::<TopUpId>() {
            match state.top_up(id) {
                Some(view) => writeln!(text, "{}", top_up(&view))?,
                None => writeln!(text, "{id} is not to be found")?,
            }
        } else if let Ok(id) = what.parse::<AdmissionId>() {
            let Some(view) = state.admission(id) else { return Ok(format!("{id} is not to be found\n")) };
            writeln!(text, "{id} {:?} of {} for {}", view.status, view.account, view.feature)?;
            tell_cost(&mut text, view.cost, &view.paid_by, view.uncovered);
            if let Some(at) = view.expires_at {
                writeln!(text, "  hold     until {at}")?;
            }
        } else {
            let Some(view) = state.account(what) else { return Ok(format!("{what} is not to be found\n")) };
            let plan = view.plan.as_deref().unwrap_or("no plan");
            writeln!(text, "{what} has {plan}, {:?}", view.state)?;
            if let Some(cap) = view.spending_cap {
                writeln!(text, "  cap      {} credits a {:?}", cap.credits, cap.period)?;
            }
            tell_limits(&mut text, &view.limits);
            if view.credits != BalancesView::default() {
                writeln!(text, "  credits  {}", books(&view.credits))?;
            }
            if !view.owed.is_zero() {
                writeln!(text, "  owes     {}", view.owed)?;
            }
            if view.banked_resets > 0 {
                writeln!(text, "  resets   {} put by", view.banked_resets)?;
            }
            if let Some(rule) = view.top_up {
                let cap = rule.monthly_cap.map_or_else(String::new, |cap| format!(", at most {cap} a month"));
                let pending = view.top_up_pending.map_or_else(String::new, |id| format!(", {id} pending"));
                writeln!(text, "  top-up   below {} to {}{cap}{pending}", rule.threshold, rule.target)?;
            }
            for grant in &view.grants {
                writeln!(text, "  grant    {} {}", grant.id, books(&grant.credits))?;
            }
            for hold in &view.holds {
                let account =
                    if *hold.account == *what { String::new() } else { format!(" of {}", hold.account) };
                writeln!(text, "  hold     {}{account} {} until {}", hold.id, hold.cost, hold.expires_at)?;
            }
        }
        Ok(text)
    }
}

impl goldenscript::Runner for Scenario {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result<String> {
        let mut arguments = Arguments::of(command);
        let name = command.name.as_str();
        if self.draft(name, &mut arguments)? {
            arguments.done()?;
            return Ok(String::new());
        }
        let key = arguments.named("key");
        let output = match name {
            "at" => {
                self.at = arguments.next("a time")?.parse()?;
                String::new()
            }
            "wait" => {
                self.at = self.at.saturating_add(arguments.next("a length of time")?.parse()?);
                String::new()
            }
            "tick" => self.apply(Command::Tick, key)?,
            "policy" => {
                let document = arguments.named("document").unwrap_or_else(|| self.draft.to_string());
                let if_revision = arguments.parsed("if_revision")?;
                self.apply(Command::PutPolicy(PutPolicy { document: &document, if_revision }), key)?
            }
            "account" => {
                let account = arguments.next("an account")?;
                let (plan, cap) = (arguments.named("plan"), arguments.named("cap"));
                let plan = match plan.as_deref() {
                    None => Change::Keep,
                    Some("-") => Change::Clear,
                    Some(name) => Change::Set(name),
                };
                let spending_cap = match cap.as_deref() {
                    None => Change::Keep,
                    Some("-") => Change::Clear,
                    Some(cap) => {
                        let (credits, period) = cap.split_once('/').ok_or("expected CREDITS/PERIOD")?;
                        let period: Period = word(period.to_owned())?;
                        Change::Set(SpendingCap { credits: credits.parse()?, period })
                    }
                };
                let state: Option<AccountState> = arguments.named("state").map(word).transpose()?;
                let top_up = match arguments.named("topup").as_deref() {
                    None => Change::Keep,
                    Some("-") => Change::Clear,
                    Some(text) => {
                        let parts = text
                            .split('/')
                            .map(str::parse)
                            .collect::<std::result::Result<Vec<Credits>, _>>()?;
                        let bridge = arguments.parsed("bridge")?.unwrap_or(Credits::ZERO);
                        let [threshold, target, cap @ ..] = &parts[..] else {
                            return Err("expected THRESHOLD/TARGET".into());
                        };
                        let (threshold, target) = (*threshold, *target);
                        Change::Set(TopUp { threshold, target, monthly_cap: cap.first().copied(), bridge })
                    }
                };
                let put = PutAccount { account: &account, plan, spending_cap, state, top_up };
                self.apply(Command::PutAccount(put), key)?
            }
            "grant" => {
                let (account, id) = (arguments.next("an account")?, arguments.next("an id")?);
                let reason = arguments.named("reason");
                let put = PutGrant {
                    account: &account,
                    id: &id,
                    source: arguments.named("source").map_or(Ok(Source::Purchase), word)?,
                    credits: arguments.next("credits")?.parse()?,
                    priority: arguments.parsed("priority")?.unwrap_or(100),
                    effective_at: arguments.parsed("effective")?,
                    expires_at: arguments.parsed("expires")?,
                    reason: reason.as_deref(),
                };
                self.apply(Command::PutGrant(put), key)?
            }
            "revoke" => {
                let (account, grant) = (arguments.next("an account")?, arguments.next("an id")?);
                let reason = arguments.named("reason").ok_or("expected a reason")?;
                let credits = arguments.parsed("credits")?;
                let revoke = Revoke { account: &account, grant: &grant, credits, reason: &reason };
                self.apply(Command::Revoke(revoke), key)?
            }
            "reset" => {
                let account = arguments.next("an account")?;
                let (limits, reason) = (arguments.named("limits"), arguments.named("reason"));
                let by = match (arguments.flag("banked"), arguments.parsed("bank")?) {
                    (true, _) => ResetBy::Banked,
                    (false, Some(resets)) => ResetBy::Banking { resets },
                    (false, None) => ResetBy::Operator,
                };
                let limits = limits.as_deref().map(|limits| limits.split(',').collect());
                let reason = reason.ok_or("expected a reason")?;
                let reset = Reset { account: &account, limits, by, reason: &reason };
                self.apply(Command::Reset(reset), key)?
            }
            "admit" => {
                let (account, feature) = (arguments.next("an account")?, arguments.next("a feature")?);
                let dry_run = arguments.flag("dry_run");
                let hold_ttl: Option<Span> = arguments.parsed("hold")?;
                let (endpoint, region) = (arguments.named("endpoint"), arguments.named("region"));
                let class: Option<Class> = arguments.named("class").map(word).transpose()?;
                let named = std::mem::take(&mut arguments.named);
                let admit = Admit {
                    account: &account,
                    feature: &feature,
                    usage: named.iter().filter_map(|(unit, text)| Some((&**unit, amount(text)?))).collect(),
                    attributes: named
                        .iter()
                        .filter(|(_, text)| amount(text).is_none())
                        .map(|(name, value)| (&**name, &**value))
                        .collect(),
                    hold_ttl,
                    dry_run,
                    list_limits: true,
                    endpoint: endpoint.as_deref(),
                    region: region.as_deref(),
                    class,
                };
                self.apply(Command::Admit(admit), key)?
            }
            "signal" => {
                let (feature, source) = (arguments.next("a feature")?, arguments.next("a source")?);
                let region = arguments.named("region").unwrap_or_else(|| "here".to_owned());
                let signal = Signal {
                    feature: &feature,
                    region: &region,
                    source: &source,
                    utilisation: arguments.parsed("utilisation")?,
                    queue_depth: arguments.parsed("queue")?,
                    latency: arguments.parsed("latency")?,
                    ttl: arguments.parsed("ttl")?.unwrap_or(Span(5_000)),
                };
                self.apply(Command::Signals(Signals { signals: vec![signal] }), key)?
            }
            "settle" => {
                let admission = arguments.next("an admission")?.parse()?;
                let last = !arguments.flag("partial");
                let (compute_ms, duration_ms) =
                    (arguments.parsed("compute_ms")?, arguments.parsed("duration_ms")?);
                let named = std::mem::take(&mut arguments.named);
                let usage = named
                    .iter()
                    .map(|(unit, text)| Ok((&**unit, amount(text).ok_or("expected an amount")?)))
                    .collect::<Result<_>>()?;
                self.apply(Command::Settle(Settle { admission, usage, compute_ms, duration_ms, last }), key)?
            }
            "extend" => {
                let admission = arguments.next("an admission")?.parse()?;
                let ttl = arguments.next("a length of time")?.parse()?;
                self.apply(Command::Extend(Extend { admission, ttl }), key)?
            }
            "release" => {
                let admission = arguments.next("an admission")?.parse()?;
                self.apply(Command::Release(Release { admission }), key)?
            }
            "confirm" => {
                let id = arguments.next("a top-up")?.parse()?;
                let (credits, reason) = (arguments.parsed("credits")?, arguments.named("reason"));
                let confirm = ConfirmTopUp { id, credits, reason: reason.as_deref() };
                self.apply(Command::ConfirmTopUp(confirm), key)?
            }
            "fail" => {
                let id = arguments.next("a top-up")?.parse()?;
                let reason = arguments.named("reason").ok_or("expected a reason")?;
                let retry_after = arguments.parsed("retry_after")?;
                self.apply(Command::FailTopUp(FailTopUp { id, reason: &reason, retry_after }), key)?
            }
            "delivered" => {
                let id = arguments.next("a top-up")?.parse()?;
                self.apply(Command::TopUpDelivered(TopUpDelivered { id }), key)?
            }
            "facts" => {
                let facts = self.lawful.facts();
                crate::story::told(facts, std::mem::replace(&mut self.shown, facts.len()))
            }
            "show" => match arguments.next("what to show")?.as_str() {
                "feature" => self.show_feature(&arguments.next("a feature")?)?,
                "sharers" => self.show_sharers(&arguments.next("a feature")?)?,
                "behaviour" => self.show_behaviour(&arguments.next("an account")?)?,
                what => self.show(what)?,
            },
            other => return Err(format!("no such command: {other}").into()),
        };
        arguments.done()?;
        Ok(output)
    }
}

// --- telling ------------------------------------------------------------------------------------

/// A fingerprint good enough for scripts: FNV-1a, twice.
fn fingerprint(text: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        text.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_le_bytes());
    bytes[8..].copy_from_slice(&hash(0x6c62_272e_07bb_0142).to_le_bytes());
    bytes
}

fn told(reply: &Reply) -> String {
    let mut text = String::new();
    let at = reply.stamp.at;
    let replayed = if reply.replayed { ", replayed" } else { "" };
    match &reply.outcome {
        Outcome::Signalled => line(&mut text, format!("reported at {at}, load {}{replayed}", reply.load)),
        Outcome::Ticked => line(&mut text, format!("time is {at}")),
        Outcome::PolicyPut { revision } => line(&mut text, format!("policy revision {revision}{replayed}")),
        Outcome::AccountPut(view) => line(
            &mut text,
            format!("account {} put: {}{replayed}", view.account, view.plan.as_deref().unwrap_or("no plan")),
        ),
        Outcome::GrantPut(view) => {
            line(&mut text, format!("grant {} put: {}{replayed}", view.id, books(&view.credits)))
        }
        Outcome::GrantRevoked(revoked) => {
            let awaited = match revoked.awaited.is_zero() {
                true => String::new(),
                false => format!(", {} when it comes back", revoked.awaited),
            };
            let how = format!("grant {} revoked: {}{awaited}{replayed}", revoked.grant.id, revoked.revoked);
            line(&mut text, format!("{how}: {}", books(&revoked.grant.credits)));
        }
        Outcome::Extended { expires_at } => line(&mut text, format!("extended until {expires_at}{replayed}")),
        Outcome::Admitted(admitted) => {
            let how = if admitted.dry_run {
                "would be admitted".into()
            } else {
                format!("{} admitted", admitted.id)
            };
            line(&mut text, format!("{how} at {at}{replayed}"));
            tell_cost(&mut text, admitted.cost, &admitted.paid_by, Credits::ZERO);
            tell_limits(&mut text, &admitted.limits);
            tell_credits(&mut text, admitted.available, admitted.held);
            if let Some(at) = admitted.hold_expires_at {
                line(&mut text, format!("  hold     until {at}"));
            }
            for layer in &admitted.would_refuse {
                line(&mut text, format!("  shadow   would be refused by {}", layer_told(layer)));
            }
        }
        Outcome::Settled(settled) if settled.last => tell_settled(&mut text, "settled", settled, replayed),
        Outcome::Settled(settled) => {
            tell_settled(&mut text, "so far", settled, replayed);
            if let Some(pace) = settled.pace {
                let word = match pace.verdict {
                    PaceVerdict::Continue => "continue",
                    PaceVerdict::Pause => "pause",
                };
                line(&mut text, format!("  pace     {word}, {} left", pace.left));
            }
        }
        Outcome::Reset(done) => {
            let limits: Vec<String> = done
                .limits
                .iter()
                .map(|limit| {
                    let used = match (&*limit.unit, i64::try_from(limit.used)) {
                        ("credits", Ok(micros)) => Credits(micros).to_string(),
                        _ => limit.used.to_string(),
                    };
                    format!("{} of {used} {}", limit.name, limit.unit)
                })
                .collect();
            let cleared = if limits.is_empty() { "nothing".to_owned() } else { limits.join(", ") };
            line(&mut text, format!("account {} cleared: {cleared}{replayed}", done.account));
            line(&mut text, format!("  resets   {} put by", done.banked_resets));
        }
        Outcome::TopUp(view) => line(&mut text, format!("{}{replayed}", top_up(view))),
        Outcome::Released(settled) => tell_settled(&mut text, "released", settled, replayed),
        Outcome::Refused(refusal) => {
            let reason = serde_json::to_value(refusal.reason).expect("a reason is a word");
            let layer = layer_told(&refusal.layer);
            let field = refusal.field.as_ref().map_or_else(String::new, |field| format!(" ({field})"));
            line(&mut text, format!("refused at {at}: {} by {layer}{field}", reason.as_str().unwrap_or("?")));
            line(&mut text, format!("  because  {}", refusal.detail));
            if let Some(cost) = refusal.cost {
                let available = refusal.available.unwrap_or(Credits::ZERO);
                line(&mut text, format!("  credits  {available} available of {cost}"));
            }
            if let Some(at) = refusal.would_pass_at {
                line(&mut text, format!("  passes   at {at}"));
            }
        }
    }
    text
}

fn layer_told(layer: &Layer) -> String {
    match layer {
        Layer::Limit { level, name } => format!("limit {name}@{level}"),
        Layer::SpendingCap { level } => format!("spending cap @{level}"),
        Layer::Account { level } => format!("account @{level}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn line(text: &mut String, line: String) {
    text.push_str(&line);
    text.push('\n');
}

fn top_up(view: &TopUpView) -> String {
    let status = format!("{:?}", view.status).to_lowercase();
    let credits = view.credits.map_or_else(String::new, |credits| format!(" with {credits}"));
    let bridge = if view.bridge.is_zero() { String::new() } else { format!(", {} ahead", view.bridge) };
    let retry = view.retry_at.map_or_else(String::new, |at| format!(", again from {at}"));
    let reason = view.reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
    let delivered = if view.delivered_at.is_some() { ", delivered" } else { "" };
    let (id, amount, account) = (view.id, view.amount, &view.account);
    format!("{id} of {amount} for {account} {status}{credits}{bridge}{retry}{delivered}{reason}")
}

fn tell_settled(text: &mut String, how: &str, settled: &Settled, replayed: &str) {
    line(text, format!("{} {how}{replayed}", settled.id));
    tell_cost(text, settled.cost, &settled.paid_by, settled.uncovered);
    if !settled.returned.is_empty() {
        let parts: Vec<String> = settled.returned.iter().map(part).collect();
        line(text, format!("  back     {}", parts.join(" + ")));
    }
    tell_credits(text, settled.available, settled.held);
}

fn tell_cost(text: &mut String, cost: Credits, paid_by: &[Payment], uncovered: Credits) {
    let mut parts: Vec<String> = paid_by.iter().map(part).collect();
    if !uncovered.is_zero() {
        parts.push(format!("{uncovered} by nobody"));
    }
    let equals = if parts.is_empty() { "" } else { " = " };
    line(text, format!("  cost     {cost}{equals}{}", parts.join(" + ")));
}

fn part(payment: &Payment) -> String {
    match &payment.payer {
        Payer::Limit { level, name } => format!("{} {name}@{level}", payment.credits),
        Payer::Grant { level, id } => format!("{} grant {id}@{level}", payment.credits),
        Payer::OtherGrants { level, grants } => {
            format!("{} of {grants} other grants@{level}", payment.credits)
        }
    }
}

fn tell_limits(text: &mut String, limits: &[LimitStatus]) {
    for limit in limits {
        let amount = |amount: u64| match (&*limit.unit, i64::try_from(amount)) {
            ("credits", Ok(micros)) => Credits(micros).to_string(),
            _ => amount.to_string(),
        };
        let resets = limit.resets_at.filter(|_| limit.used > 0);
        let resets = resets.map_or_else(String::new, |at| format!(", whole at {at}"));
        line(
            text,
            format!(
                "  limit    {}@{} {}/{} {}{resets}",
                limit.name,
                limit.level,
                amount(limit.used),
                amount(limit.quota),
                limit.unit
            ),
        );
    }
}

fn tell_credits(text: &mut String, available: Credits, held: Credits) {
    if !(available.is_zero() && held.is_zero()) {
        line(text, format!("  credits  {available} available, {held} held"));
    }
}

fn books(books: &BalancesView) -> String {
    let parts = [
        (books.available, "available"),
        (books.scheduled, "scheduled"),
        (books.held, "held"),
        (books.spent, "spent"),
        (books.expired, "expired"),
        (books.revoked, "revoked"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(credits, _)| !credits.is_zero())
        .map(|(credits, word)| format!("{credits} {word}"))
        .collect();
    format!("{} granted = {}", books.granted, parts.join(" + "))
}

// --- running ------------------------------------------------------------------------------------

#[test]
fn every_script_tells_what_it_told_before() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decision/scripts");
    let entries = std::fs::read_dir(&folder).expect("the scripts are there");
    let mut scripts: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        println!("running {}", script.display());
        goldenscript::run(&mut Scenario::new(), &script)
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}
