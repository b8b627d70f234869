//! What deciding alone costs: admissions applied to a state, in groups as entries have them, and their facts encoded.
//!
//! `cargo bench --bench apply -- POLICY.toml…` tells nanoseconds for an admission under each policy, the median of
//! rounds in turns. One node does this once for every admission, and each node of a cluster does it again. There is no
//! network here and no disk, so what it tells is only what policies differ by.

use std::path::Path;
use std::time::{Duration, Instant};

use quorate::decision::State;
use quorate::decision::command::{
    Admit, Change, Command, Key, PutAccount, PutPolicy, Request, Signal, Signals, Stamp,
};
use quorate::decision::policy::Document;
use quorate::decision::reply::{Outcome, Reply};
use quorate::units::{Millis, Ppm, Span};

const ACCOUNTS: u64 = 10_000;
/// Admissions in an entry, and entries in a round.
const GROUP: u32 = 100;
const ENTRIES: u64 = 500;
const ROUNDS: usize = 9;
const FEATURE: &str = "bench.limit";

fn main() {
    let policies: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut subjects: Vec<Subject> = policies.iter().map(|path| Subject::new(Path::new(path))).collect();
    let mut rounds: Vec<Vec<Duration>> = vec![Vec::new(); subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, times) in subjects.iter_mut().zip(&mut rounds) {
            times.push(subject.round());
        }
    }
    for (policy, mut times) in policies.iter().zip(rounds) {
        times.sort_unstable();
        let each = |time: Duration| time.as_nanos() / u128::from(ENTRIES * u64::from(GROUP));
        let (least, median) = (each(times[0]), each(times[ROUNDS / 2]));
        println!("{policy}: {median} ns an admission (least {least})");
    }
}

/// A state under one policy.
struct Subject {
    state: State,
    accounts: Vec<String>,
    at: u64,
    index: u64,
    admitted: u64,
    facts: Vec<u8>,
}

impl Subject {
    fn new(policy: &Path) -> Subject {
        let text = std::fs::read_to_string(policy).expect("a policy file");
        let document: Document = toml::from_str(&text).expect("a policy");
        let document = serde_json::to_string(&document).expect("a policy as JSON");
        let accounts = (0..ACCOUNTS).map(|number| format!("bench{number}")).collect();
        let mut state = State::new();
        state.keep_facts(true);
        let mut subject =
            Subject { state, accounts, at: 1_700_000_000_000, index: 0, admitted: 0, facts: Vec::new() };
        subject.ask(Command::PutPolicy(PutPolicy { document: &document, if_revision: None }));
        for account in subject.accounts.clone() {
            subject.ask(Command::PutAccount(PutAccount {
                account: &account,
                plan: Change::Set("bench"),
                spending_cap: Change::Keep,
                state: None,
                top_up: Change::Keep,
            }));
        }
        subject
    }

    fn ask(&mut self, command: Command<'_>) {
        let reply = self.apply_alone(command);
        assert!(!matches!(reply.outcome, Outcome::Refused(_)), "{reply:?}");
    }

    /// One command in an entry of its own.
    fn apply_alone(&mut self, command: Command<'_>) -> Reply {
        self.index += 1;
        let stamp = Stamp { at: Millis(self.at), term: 1, index: self.index, position: 0 };
        let reply = self.state.apply(stamp, &Request { key: None, command });
        self.state.clear_facts();
        reply
    }

    fn round(&mut self) -> Duration {
        let began = Instant::now();
        for entry in 0..ENTRIES {
            if entry % 100 == 0 {
                self.report();
            }
            self.entry();
        }
        began.elapsed()
    }

    /// What three backends near their target say, where the policy listens to them.
    fn report(&mut self) {
        let signal = |source| Signal {
            feature: FEATURE,
            region: "bench",
            source,
            utilisation: Some(Ppm(800_000)),
            queue_depth: None,
            latency: None,
            ttl: Span(10_000),
        };
        let signals = ["backend1", "backend2", "backend3"].map(signal).to_vec();
        // A policy that moves nothing by load refuses it, which is as well.
        self.apply_alone(Command::Signals(Signals { signals }));
    }

    fn entry(&mut self) {
        self.index += 1;
        self.at += 3;
        let numbers: Vec<u64> = (self.admitted..).take(GROUP as usize).collect();
        self.admitted += u64::from(GROUP);
        let keys: Vec<String> = numbers.iter().map(|number| format!("{number:032x}")).collect();
        let requests: Vec<Request<'_>> = numbers
            .iter()
            .zip(&keys)
            .map(|(number, key)| {
                let mut fingerprint = [0; 16];
                fingerprint[..8].copy_from_slice(&number.to_le_bytes());
                let admit = Admit {
                    account: &self.accounts[(number.wrapping_mul(7_919) % ACCOUNTS) as usize],
                    feature: FEATURE,
                    usage: vec![("requests", 1)],
                    attributes: Vec::new(),
                    hold_ttl: None,
                    dry_run: false,
                    list_limits: false,
                    endpoint: None,
                    region: None,
                    class: None,
                };
                Request { key: Some(Key { key, fingerprint }), command: Command::Admit(admit) }
            })
            .collect();
        let mut position = 0;
        for group in requests.chunks(State::AHEAD) {
            self.state.look_ahead(group.iter());
            for request in group {
                let stamp = Stamp { at: Millis(self.at), term: 1, index: self.index, position };
                let reply = self.state.apply(stamp, request);
                assert!(matches!(reply.outcome, Outcome::Admitted(_)), "{reply:?}");
                position += 1;
            }
        }
        self.facts.clear();
        let config = bincode::config::standard();
        bincode::serde::encode_into_std_write(self.state.facts(), &mut self.facts, config)
            .expect("facts are plain data");
        self.state.clear_facts();
    }
}
