//! Who gets how much of a capacity that does not suffice: by class, and by owner.
//!
//! Many requests in many seconds, on a state by itself: what the laws say of each command is checked by
//! `properties`, in `every_law_holds_where_limits_move`.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::select;
use quorate::decision::State;
use quorate::decision::command::{
    Admit, Change, Class, Command, PutAccount, PutPolicy, Release, Request, Signal, Signals, Stamp,
};
use quorate::decision::reply::{Layer, Outcome, Reason, Reply};
use quorate::units::{Millis, Ppm, Span};
use serde_json::json;

use crate::properties::run;

const START: Millis = Millis(1_801_000_000_000);
const QUOTA: u64 = 1_000;

/// A state with one capacity of [`QUOTA`] tokens in a second.
struct Crowd {
    state: State,
    at: Millis,
    index: u64,
}

impl Crowd {
    fn new(feature: serde_json::Value, plans: serde_json::Value) -> Crowd {
        let mut code = json!({
            "units": ["tokens", "images"],
            "capacity": [{"name": "all", "unit": "tokens", "quota": QUOTA, "algorithm": "sliding_window", "window": "1s"}],
        });
        let parts = feature.as_object().expect("parts of a feature").clone();
        code.as_object_mut().expect("an object").extend(parts);
        let policy = json!({ "features": { "code": code }, "plans": plans }).to_string();
        let mut crowd = Crowd { state: State::new(), at: START, index: 0 };
        let put = crowd.ask(Command::PutPolicy(PutPolicy { document: &policy, if_revision: None }));
        assert!(matches!(put.outcome, Outcome::PolicyPut { .. }), "{put:?}");
        crowd
    }

    fn ask(&mut self, command: Command<'_>) -> Reply {
        self.index += 1;
        let stamp = Stamp { at: self.at, term: 1, index: self.index, position: 0 };
        self.state.apply(stamp, &Request { key: None, command })
    }

    fn put_account(&mut self, account: &str, plan: &str) {
        let put = PutAccount {
            account,
            plan: Change::Set(plan),
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Keep,
        };
        let reply = self.ask(Command::PutAccount(put));
        assert!(matches!(reply.outcome, Outcome::AccountPut(_)), "{reply:?}");
    }

    /// Whether it is admitted.
    fn admit(&mut self, account: &str, tokens: u64) -> bool {
        matches!(self.decide(account, tokens), Outcome::Admitted(_))
    }

    fn decide(&mut self, account: &str, tokens: u64) -> Outcome {
        self.decide_of(account, "tokens", tokens)
    }

    fn decide_of(&mut self, account: &str, unit: &str, quantity: u64) -> Outcome {
        let admit = Admit {
            account,
            feature: "code",
            usage: vec![(unit, quantity)],
            attributes: Vec::new(),
            hold_ttl: None,
            dry_run: false,
            list_limits: false,
            endpoint: None,
            region: None,
            class: None,
        };
        self.ask(Command::Admit(admit)).outcome
    }

    fn report(&mut self, utilisation: Ppm) {
        let signal = Signal {
            feature: "code",
            region: "here",
            source: "gpu",
            utilisation: Some(utilisation),
            queue_depth: None,
            latency: None,
            ttl: Span(5_000),
        };
        let reply = self.ask(Command::Signals(Signals { signals: vec![signal] }));
        assert!(matches!(reply.outcome, Outcome::Signalled), "{reply:?}");
    }
}

/// What each gets of so many tokens, by plain filling: everybody's level rises by its weight until it is met.
fn max_min(asked: &[(u64, u32)], tokens: u64) -> Vec<f64> {
    let mut got = vec![0.0; asked.len()];
    let mut left = tokens as f64;
    loop {
        let open: Vec<usize> =
            (0..asked.len()).filter(|place| got[*place] < asked[*place].0 as f64).collect();
        let weights: f64 = open.iter().map(|place| f64::from(asked[*place].1)).sum();
        if open.is_empty() || left < 1e-6 {
            return got;
        }
        let until_met = |place: &usize| (asked[*place].0 as f64 - got[*place]) / f64::from(asked[*place].1);
        let rise = open.iter().map(until_met).fold(left / weights, f64::min);
        for place in open {
            got[place] += rise * f64::from(asked[place].1);
            left -= rise * f64::from(asked[place].1);
        }
    }
}

#[test]
fn owners_get_what_is_fair_by_their_weights_whatever_others_ask_for() {
    const SECONDS: u64 = 30;
    const SETTLED: u64 = 15;
    let asked = prop::collection::vec((1_u64..40, prop::sample::select(vec![1_u32, 2, 4])), 2..7);
    run("owners_get_what_is_fair", 24, (asked, any::<bool>()), |(asked, in_classes)| {
        // Tokens in each of fifty ticks of a second.
        let asked: Vec<(u64, u32)> =
            asked.into_iter().map(|(tokens, weight)| (tokens * 50, weight)).collect();
        let plans = json!({ "w1": {"weight": 1}, "w2": {"weight": 2}, "w4": {"weight": 4} });
        let mut feature = json!({ "fair": true });
        if in_classes {
            feature["shares"] =
                json!({ "critical": "0.2", "standard": "0.4", "sheddable": "0.3", "batch": "0.1" });
        }
        // All of them are of class standard: a fifth is critical's, and of the last twentieth they borrow nothing.
        let tokens = if in_classes { QUOTA * 4 / 5 - QUOTA / 20 } else { QUOTA };
        let mut crowd = Crowd::new(feature, plans);
        let names: Vec<String> = (0..asked.len()).map(|place| format!("owner{place}")).collect();
        for (name, (_, weight)) in names.iter().zip(&asked) {
            crowd.put_account(name, &format!("w{weight}"));
        }
        let mut got = vec![0_u64; asked.len()];
        for tick in 0..SECONDS * 50 {
            crowd.at = Millis(START.0 + tick * 20);
            // Another one is first each time.
            for turn in 0..asked.len() {
                let place = (turn + tick as usize) % asked.len();
                let tokens = asked[place].0 / 50;
                if crowd.admit(&names[place], tokens) && tick >= SETTLED * 50 {
                    got[place] += tokens;
                }
            }
        }
        let fair = max_min(&asked, tokens);
        let seconds = (SECONDS - SETTLED) as f64;
        for ((got, fair), (asked, weight)) in got.iter().zip(&fair).zip(&asked) {
            let got = *got as f64 / seconds;
            // What is kept free for who comes, and what a window gives back late, is nobody's.
            if got < fair * 0.8 - 20.0 {
                return Err(format!("{got} of {asked} by {weight}, and {fair} would be fair"));
            }
        }
        let (sum, wanted) =
            (got.iter().sum::<u64>() as f64 / seconds, asked.iter().map(|(asked, _)| asked).sum::<u64>());
        let useful = (wanted.min(tokens)) as f64;
        if sum < useful * 0.85 { Err(format!("{sum} of {useful} is used")) } else { Ok(()) }
    });
}

#[test]
fn critical_always_gets_its_share_whatever_load_and_others_do() {
    let flood = prop::collection::vec((0_u64..400, 0_u64..400, 0_u64..400, 0_u64..3_000_000), 5..40);
    run("critical_always_gets_its_share", 40, flood, |flood| {
        let shares = json!({ "critical": "0.2", "standard": "0.4", "sheddable": "0.3", "batch": "0.1" });
        let feature = json!({ "shares": shares, "load": { "floor": "0.2" } });
        let plans = Class::ALL.map(|class| (class.name().to_owned(), json!({ "class": class.name() })));
        let mut crowd = Crowd::new(feature, serde_json::Value::Object(plans.into_iter().collect()));
        for class in Class::ALL {
            crowd.put_account(class.name(), class.name());
        }
        // A fifth of what there is, in every second: 20 in each of ten ticks.
        for (second, (standard, sheddable, batch, utilisation)) in flood.into_iter().enumerate() {
            for tick in 0..10 {
                crowd.at = Millis(START.0 + second as u64 * 1_000 + tick * 100);
                if tick == 0 {
                    crowd.report(Ppm(utilisation));
                }
                for (account, tokens) in [("batch", batch), ("sheddable", sheddable), ("standard", standard)]
                {
                    crowd.admit(account, tokens);
                    crowd.admit(account, tokens / 10);
                }
                // A window gives back one slice late: a little less than the share is always there.
                if !crowd.admit("critical", 18) {
                    return Err(format!("refused in second {second}"));
                }
            }
        }
        Ok(())
    });
}

/// Where classes and owners share it, and load moves it.
#[test]
fn a_shared_capacity_in_shadow_mode_decides_and_counts_as_if_it_were_enforced_and_refuses_nobody() {
    let plans = Class::ALL.map(|class| {
        let weight = 1 + class as u32;
        (class.name().to_owned(), json!({ "class": class.name(), "weight": weight }))
    });
    let plans = serde_json::Value::Object(plans.into_iter().collect());
    let ask = (0..8_usize, select(vec![1_u64, 7, 40, 300]), select(vec![0_u64, 0, 3, 20, 400]));
    let asks = prop::collection::vec(ask, 50..400);
    let utilisations = prop::collection::vec(0_u64..2_000_000, 3);
    let (refused, with_room) = (Cell::new(0_u32), Cell::new(0_u32));
    let strategy = (asks, utilisations, any::<bool>(), any::<bool>());
    run("a_shared_capacity_in_shadow_mode", 60, strategy, |(asks, utilisations, in_classes, by_load)| {
        let mut crowds = [false, true].map(|shadow| {
            let mut feature = json!({ "fair": true, "capacity": [{ "name": "all", "unit": "tokens", "quota": QUOTA,
                "algorithm": "sliding_window", "window": "1s", "shadow": shadow }] });
            if in_classes {
                feature["shares"] =
                    json!({ "critical": "0.2", "standard": "0.4", "sheddable": "0.3", "batch": "0.1" });
            }
            if by_load {
                feature["load"] = json!({ "floor": "0.2" });
            }
            Crowd::new(feature, plans.clone())
        });
        let owners: Vec<String> = (0..8).map(|owner| format!("owner{owner}")).collect();
        for (place, owner) in owners.iter().enumerate() {
            crowds.iter_mut().for_each(|crowd| crowd.put_account(owner, Class::ALL[place % 4].name()));
        }
        for (place, (owner, tokens, later)) in asks.into_iter().enumerate() {
            let before = crowds[0].state.feature("code").expect("it is there").capacity[0].limit.used;
            for crowd in &mut crowds {
                crowd.at = crowd.at.saturating_add(Span(later));
                if by_load && place % 20 == 0 {
                    crowd.report(Ppm(utilisations[place / 20 % utilisations.len()]));
                }
            }
            let [enforced, tried] = crowds.each_mut().map(|crowd| crowd.decide(&owners[owner], tokens));
            let is_refused = match enforced {
                Outcome::Refused(refusal) if refusal.reason == Reason::CapacityReached => true,
                Outcome::Admitted(_) => false,
                other => return Err(format!("enforced: {other:?}")),
            };
            let Outcome::Admitted(tried) = tried else { return Err(format!("refused: {tried:?}")) };
            let told = is_refused.then(|| Layer::Limit { level: 0, name: "all".into() });
            if tried.would_refuse != Vec::from_iter(told) {
                return Err(format!("enforced, it refuses: {is_refused}; tried: {tried:?}"));
            }
            refused.set(refused.get() + u32::from(is_refused));
            with_room.set(with_room.get() + u32::from(is_refused && before + tokens <= QUOTA));
            let shown = crowds.each_ref().map(|crowd| {
                let capacity = crowd.state.feature("code").expect("it is there").capacity;
                let capacity =
                    capacity.into_iter().map(|view| (view.limit.used, view.limit.quota, view.by_class));
                (capacity.collect::<Vec<_>>(), crowd.state.sharers("code"))
            });
            if shown[0] != shown[1] {
                return Err(format!("enforced {:?}\n   tried {:?}", shown[0], shown[1]));
            }
        }
        Ok(())
    });
    let (refused, with_room) = (refused.get(), with_room.get());
    assert!(refused > 200 && with_room > 50, "it refused {refused} times, {with_room} by whose turn it was");
}

#[test]
fn holding_and_releasing_again_and_again_wins_no_room_in_a_guard_above_its_quota() {
    let minute = json!({"name": "month", "unit": "tokens", "quota": 10, "algorithm": "fixed_window",
        "anchor": "first_use", "window": "30d", "adaptive": {}});
    let plans = json!({ "pro": { "trust": { "bonus": "0.2" }, "limits": [minute] } });
    let mut crowd = Crowd::new(json!({}), plans);
    crowd.put_account("clever", "pro");
    // All of the bonus, for what the guard does not count.
    for _ in 0..150 {
        assert!(matches!(crowd.decide_of("clever", "images", 1), Outcome::Admitted(_)));
    }
    let mut kept = 0;
    for round in 0..600 {
        let admit = Admit {
            account: "clever",
            feature: "code",
            usage: vec![("tokens", 1)],
            attributes: Vec::new(),
            hold_ttl: Some(Span::HOUR),
            dry_run: false,
            list_limits: false,
            endpoint: None,
            region: None,
            class: None,
        };
        let Outcome::Admitted(admitted) = crowd.ask(Command::Admit(admit)).outcome else { continue };
        // By what was carried from those before it, every sixth would count for nothing if the others could give back
        // more than they cost.
        if round > 0 && round % 6 == 0 {
            kept += 1;
        } else {
            let release = Release { admission: admitted.id };
            let released = crowd.ask(Command::Release(release)).outcome;
            assert!(matches!(released, Outcome::Released(_)), "{released:?}");
        }
    }
    assert!((11..=12).contains(&kept), "ten, and the bonus: {kept}");
}

#[test]
fn reports_of_one_source_too_many_are_refused_with_all_others_of_the_request() {
    let mut crowd = Crowd::new(json!({ "load": {} }), json!({ "pro": {} }));
    let most = State::SIGNALS_PER_FEATURE_MAX;
    let names: Vec<String> = (0..most + 2).map(|source| format!("gpu{source}")).collect();
    let report = |crowd: &mut Crowd, sources: &[String]| {
        let signal = |source| Signal {
            feature: "code",
            region: "here",
            source,
            utilisation: Some(Ppm::ONE),
            queue_depth: None,
            latency: None,
            ttl: Span(5_000),
        };
        let signals = sources.iter().map(|source| signal(source.as_str())).collect();
        crowd.ask(Command::Signals(Signals { signals })).outcome
    };
    let reported = |crowd: &Crowd| crowd.state.feature("code").map_or(0, |feature| feature.signals.len());
    assert!(matches!(report(&mut crowd, &names[..most - 1]), Outcome::Signalled));
    // There is room for one of them, and for one that is known.
    let refused = report(&mut crowd, &names[most - 2..most + 1]);
    let Outcome::Refused(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.reason, Reason::TooMany);
    assert_eq!(reported(&crowd), most - 1);
    assert!(matches!(report(&mut crowd, &names[most - 2..most]), Outcome::Signalled));
    assert_eq!(reported(&crowd), most);
    // Those whose time is over make room, if they do not report again.
    crowd.at = crowd.at.saturating_add(Span(5_000));
    assert!(matches!(report(&mut crowd, &names[2..]), Outcome::Signalled));
    assert_eq!(reported(&crowd), most);
}
