//! One policy over one scenario: every request is decided by a state of its own, as a node would, and what is admitted
//! keeps the backend busy.

use serde::Serialize;

use crate::cli::chance::Chance;
use crate::cli::simulate::SimulateError;
use crate::cli::simulate::backend::{Backend, STEP_MS};
use crate::cli::simulate::scenario::{Caller, Scenario};
use crate::decision::State;
use crate::decision::command::{
    Admit, Change, Class, Command, PutAccount, PutPolicy, Request, Signal, Signals, Stamp,
};
use crate::decision::policy::Document;
use crate::decision::reply::{Outcome, Reply};
use crate::units::{Millis, Ppm, Span};

/// What is asked for in every policy that is simulated.
pub(super) const FEATURE: &str = "chat";
/// When a simulation begins: 2027-01-01T00:00:00Z.
const BEGIN: Millis = Millis(1_798_761_600_000);
/// So long after the beginning of a second the backend reports on the second that ends then: between the steps of the
/// controllers, which are at whole seconds.
const REPORT_MS: u64 = 500;
const STEPS_A_SECOND: u64 = 1_000 / STEP_MS;
const CLASSES: usize = Class::ALL.len();

/// How the backend works, and what it says of that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Tokens a second that one stream can have at most.
    pub pace: u64,
    /// By how much a report may be off, in millionths of it.
    pub noise: u64,
    pub seed: u64,
}

/// One second.
#[derive(Clone, Debug, Default)]
pub(super) struct Second {
    pub capacity: u64,
    /// Tokens, by class.
    pub asked: [u64; CLASSES],
    pub admitted: [u64; CLASSES],
    pub streams: u64,
    pub waiting: u64,
    pub utilisation: u64,
    pub factor: u64,
    pub by_class: [u64; CLASSES],
    pub in_time: u64,
    pub late: u64,
}

/// Requests and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Amount {
    pub requests: u64,
    pub tokens: u64,
}

/// What became of the requests of a group of accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub asked: Amount,
    pub admitted: Amount,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub seconds: Vec<Second>,
    pub by_class: [Tally; CLASSES],
    pub small: [Tally; CLASSES],
    pub by_caller: Vec<Tally>,
}

impl Run {
    /// Tokens that were worked on and done in time.
    pub fn useful(&self) -> u64 {
        self.seconds.iter().map(|second| second.in_time).sum()
    }

    pub fn late(&self) -> u64 {
        self.seconds.iter().map(|second| second.late).sum()
    }

    /// Seconds in which more was wanted of the backend than it could do.
    pub fn overloaded(&self) -> u64 {
        self.seconds.iter().filter(|second| second.utilisation > Ppm::ONE.0).count() as u64
    }
}

impl Amount {
    fn add(&mut self, tokens: u64) {
        self.requests += 1;
        self.tokens += tokens;
    }
}

impl Tally {
    fn ask(&mut self, tokens: u64, is_admitted: bool) {
        self.asked.add(tokens);
        if is_admitted {
            self.admitted.add(tokens);
        }
    }

    pub fn sum(tallies: &[Tally]) -> Tally {
        let mut sum = Tally::default();
        for tally in tallies {
            sum.asked.requests += tally.asked.requests;
            sum.asked.tokens += tally.asked.tokens;
            sum.admitted.requests += tally.admitted.requests;
            sum.admitted.tokens += tally.admitted.tokens;
        }
        sum
    }

    /// Of the requests, in percent.
    pub fn refused_percent(&self) -> f64 {
        let refused = self.asked.requests - self.admitted.requests;
        100.0 * refused as f64 / self.asked.requests.max(1) as f64
    }
}

/// The plan of each class, by which accounts get theirs.
fn plan(class: Class) -> &'static str {
    match class {
        Class::Critical => "enterprise",
        Class::Standard => "pro",
        Class::Sheddable => "free",
        Class::Batch => "nightly",
    }
}

/// A state, and where the log would be.
struct Decider {
    state: State,
    index: u64,
}

impl Decider {
    fn apply(&mut self, at_ms: u64, command: Command<'_>) -> Reply {
        self.index += 1;
        let stamp = Stamp { at: Millis(BEGIN.0 + at_ms), term: 1, index: self.index, position: 0 };
        self.state.apply(stamp, &Request { key: None, command })
    }

    /// What has to be done before anything is asked.
    fn prepare(&mut self, command: Command<'_>) -> Result<(), SimulateError> {
        match self.apply(0, command).outcome {
            Outcome::Refused(refusal) => Err(SimulateError::Refused(refusal.detail)),
            _ => Ok(()),
        }
    }

    fn new(document: &Document, callers: &[Caller]) -> Result<Decider, SimulateError> {
        let mut decider = Decider { state: State::new(), index: 0 };
        let document = serde_json::to_string(document).map_err(SimulateError::Document)?;
        decider.prepare(Command::PutPolicy(PutPolicy { document: &document, if_revision: None }))?;
        for caller in callers {
            decider.prepare(Command::PutAccount(PutAccount {
                account: &caller.account,
                plan: Change::Set(plan(caller.class)),
                spending_cap: Change::Keep,
                state: None,
                top_up: Change::Keep,
            }))?;
        }
        Ok(decider)
    }

    fn admits(&mut self, at_ms: u64, account: &str, tokens: u64) -> bool {
        let admit = Admit {
            account,
            feature: FEATURE,
            usage: vec![("tokens", tokens)],
            attributes: Vec::new(),
            hold_ttl: None,
            dry_run: false,
            list_limits: false,
            endpoint: None,
            region: None,
            class: None,
        };
        matches!(self.apply(at_ms, Command::Admit(admit)).outcome, Outcome::Admitted(_))
    }

    /// A policy that does not move the feature by load refuses reports, which is as good as none.
    fn report(&mut self, at_ms: u64, utilisation: u64) {
        let signal = Signal {
            feature: FEATURE,
            region: "here",
            source: "backend",
            utilisation: Some(Ppm(utilisation)),
            queue_depth: None,
            latency: None,
            ttl: Span(5_000),
        };
        self.apply(at_ms, Command::Signals(Signals { signals: vec![signal] }));
    }
}

/// Lets a policy decide everything that is asked.
pub(super) fn drive(
    scenario: &Scenario,
    document: &Document,
    setting: Setting,
) -> Result<Run, SimulateError> {
    let mut decider = Decider::new(document, &scenario.callers)?;
    let mut backend = Backend::new(setting.pace);
    let mut chance = Chance::new(setting.seed);
    let mut run = Run { by_caller: vec![Tally::default(); scenario.callers.len()], ..Run::default() };
    let mut asked = scenario.asked.iter().peekable();
    let mut lately = [0; STEPS_A_SECOND as usize];
    for place in 0..scenario.seconds {
        let capacity = scenario.capacity[place as usize];
        let mut second = Second { capacity, ..Second::default() };
        for step in 0..STEPS_A_SECOND {
            let now_ms = place * 1_000 + step * STEP_MS;
            if step * STEP_MS == REPORT_MS {
                let utilisation = lately.iter().sum::<u64>() / STEPS_A_SECOND;
                decider.report(now_ms, noisy(utilisation, setting.noise, &mut chance));
            }
            while let Some(one) = asked.next_if(|one| one.at_ms < now_ms + STEP_MS) {
                let caller = &scenario.callers[one.caller];
                let is_admitted = decider.admits(one.at_ms, &caller.account, one.tokens);
                run.tally(one.caller, caller, one.tokens, is_admitted);
                second.asked[caller.class as usize] += one.tokens;
                if is_admitted {
                    second.admitted[caller.class as usize] += one.tokens;
                    backend.begin(one.tokens, one.at_ms);
                }
            }
            let done = backend.step(capacity, now_ms + STEP_MS);
            lately[step as usize] = done.utilisation;
            second.in_time += done.in_time;
            second.late += done.late;
        }
        second.utilisation = lately.iter().sum::<u64>() / STEPS_A_SECOND;
        (second.streams, second.waiting) = backend.streams(capacity);
        if let Some(view) = decider.state.feature(FEATURE) {
            second.factor = view.factor.0;
            second.by_class = view.by_class.map(|factor| factor.0);
        }
        run.seconds.push(second);
    }
    Ok(run)
}

impl Run {
    fn tally(&mut self, place: usize, caller: &Caller, tokens: u64, is_admitted: bool) {
        self.by_caller[place].ask(tokens, is_admitted);
        self.by_class[caller.class as usize].ask(tokens, is_admitted);
        if caller.is_small {
            self.small[caller.class as usize].ask(tokens, is_admitted);
        }
    }
}

/// A value that is off by up to `noise` millionths of it, to either side.
fn noisy(value: u64, noise: u64, chance: &mut Chance) -> u64 {
    let off = Ppm::ONE.0 - noise + chance.next() % (2 * noise + 1);
    value * off / Ppm::ONE.0
}
