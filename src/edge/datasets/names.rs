//! The names of what facts name by numbers, as far as one answer needs them, and the plans that accounts had.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::decision::facts::{Fact, Versions, with_versions};
use crate::decision::policy::Policy;
use crate::edge::datasets::walk::{Entry, Walk};
use crate::edge::kind::Kind;
use crate::edge::limits::PLAN_CHANGES_READ_MAX;
use crate::edge::problem::Problem;
use crate::replication::Replica;

#[derive(Default)]
pub(crate) struct Names {
    accounts: HashMap<u32, Arc<str>>,
    grants: HashMap<(u32, u64), Arc<str>>,
    /// By account.
    plans: HashMap<u32, Puts>,
    /// What entries put, by account: where it was put before, and its plan since then.
    puts_in: HashMap<u64, HashMap<u32, Put>>,
    /// By revision.
    policies: HashMap<u64, Policy>,
}

/// When an account was put, newest first: the entry, and the plan that it had from then on.
type Puts = Vec<Put>;

/// An entry that put an account, and a plan.
type Put = (u64, Option<Arc<str>>);

impl Names {
    /// Looks up what `facts` name and is not known yet: once for all of them. Accounts and grants are never
    /// renamed, so this node's own state is fresh enough. A grant that ended long ago is forgotten by the
    /// state: its name is read where it was told, in the entry that made it.
    pub(crate) async fn learn(&mut self, walk: &mut Walk<'_>, facts: &[Fact]) {
        let accounts: HashSet<u32> = facts
            .iter()
            .filter_map(Fact::account)
            .filter(|number| !self.accounts.contains_key(number))
            .collect();
        let grants: HashMap<(u32, u64), u64> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Posting(posting) => Some(((posting.account, posting.grant), posting.granted_in)),
                Fact::NotRenewed(ended) => Some(((ended.account, ended.grant), ended.granted_in)),
                _ => None,
            })
            .filter(|(grant, _)| !self.grants.contains_key(grant))
            .collect();
        if accounts.is_empty() && grants.is_empty() {
            return;
        }
        let mut forgotten = Vec::new();
        walk.replica().read_local(|state| {
            for number in accounts {
                let Some(path) = state.account_path(number) else { continue };
                self.accounts.insert(number, path.clone());
            }
            for ((account, grant), granted_in) in grants {
                match state.grant_id(account, grant) {
                    Some(id) => _ = self.grants.insert((account, grant), id.clone()),
                    None => forgotten.push((account, grant, granted_in)),
                }
            }
        });
        for (account, grant, granted_in) in forgotten {
            let id = name_told(walk, grant, granted_in).await;
            // Where the facts of that entry are missing here, the rest is told all the same.
            let id = id.unwrap_or_else(|| format!("(ended grant {grant})").into());
            self.grants.insert((account, grant), id);
        }
    }

    /// Finds the plans that those who used something in an entry had before it.
    pub(crate) async fn learn_plans(
        &mut self,
        replica: &Replica,
        walk: &mut Walk<'_>,
        entry: &Entry,
    ) -> Result<(), Problem> {
        let used_by: HashSet<u32> = entry
            .facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Usage(usage) => usage.account,
                _ => None,
            })
            .collect();
        self.note_puts(entry);
        for account in used_by {
            let mut puts = self.plans.remove(&account).unwrap_or_default();
            if puts.is_empty() {
                puts.extend(replica.read_local(|state| {
                    state.account_plan(account).map(|(put_in, plan)| (put_in, plan.cloned()))
                }));
            }
            // Each put says which was before it. An account that was not put since then costs nothing.
            let mut hops = 0;
            while let Some((put_in, _)) = puts.last().filter(|(put_in, _)| *put_in >= entry.index) {
                hops += 1;
                if hops > PLAN_CHANGES_READ_MAX {
                    let detail =
                        "an account was put too often since then to find its plan; ask for a later time";
                    return Err(Problem::new(Kind::Overloaded, detail));
                }
                let (put_before, _) = self.put_in(walk, *put_in, account).await?;
                if put_before == 0 {
                    puts.push((0, None));
                    break;
                }
                let (_, plan) = self.put_in(walk, put_before, account).await?;
                puts.push((put_before, plan));
            }
            self.plans.insert(account, puts);
        }
        Ok(())
    }

    /// How the entry at `index` put an account: where it was put before, and the plan that it had from then on.
    async fn put_in(&mut self, walk: &mut Walk<'_>, index: u64, account: u32) -> Result<Put, Problem> {
        if !self.puts_in.contains_key(&index) {
            self.note_puts(&walk.entry(index).await?);
        }
        let puts = self.puts_in.get(&index);
        Ok(puts.and_then(|puts| puts.get(&account)).cloned().unwrap_or_default())
    }

    /// Goes through what an entry put once, for all accounts: it may have put thousands.
    fn note_puts(&mut self, entry: &Entry) {
        let puts = puts_of(entry);
        if !puts.is_empty() {
            self.puts_in.insert(entry.index, puts);
        }
    }

    /// Reads the policies that name what the decisions of an entry looked at, from the entries that put them.
    pub(crate) async fn learn_policies(&mut self, walk: &mut Walk<'_>, entry: &Entry) -> Result<(), Problem> {
        for (versions, _, fact) in with_versions(&entry.facts) {
            let Versions { policy: revision, policy_index, .. } = versions;
            if !matches!(fact, Fact::Layers(_)) || self.policies.contains_key(&revision) {
                continue;
            }
            let put = walk.entry(policy_index).await?;
            let document = put.facts.iter().find_map(|fact| match fact {
                Fact::PolicyPut(put) if put.revision == revision => Some(&put.document),
                _ => None,
            });
            let compiled = document
                .and_then(|document| serde_json::from_str(document).ok())
                .and_then(|document| Policy::compile(&document).ok());
            let policy = compiled.ok_or_else(|| {
                let detail = format!("the policy {revision} cannot be read from entry {policy_index}");
                Problem::new(Kind::NodeFailing, detail)
            })?;
            self.policies.insert(revision, policy);
        }
        Ok(())
    }

    pub(crate) fn policy(&self, revision: u64) -> Option<&Policy> {
        self.policies.get(&revision)
    }

    pub(crate) fn account(&self, number: u32) -> Option<&Arc<str>> {
        self.accounts.get(&number)
    }

    /// The plan that an account had before an entry whose plans were learned.
    pub(crate) fn plan_before(&self, account: u32, entry: u64) -> Option<&Arc<str>> {
        let mut puts = self.plans.get(&account)?.iter();
        puts.find(|(put_in, _)| *put_in < entry)?.1.as_ref()
    }

    pub(crate) fn grant(&self, account: u32, number: u64) -> Option<&Arc<str>> {
        self.grants.get(&(account, number))
    }
}

/// What an entry put, by account: where it was put before, and the plan that the last put gave it.
fn puts_of(entry: &Entry) -> HashMap<u32, Put> {
    let mut puts: HashMap<u32, Put> = HashMap::new();
    for fact in &entry.facts {
        let Fact::AccountPut(put) = fact else { continue };
        let (_, plan) = puts.entry(put.account).or_insert_with(|| (put.put_before, None));
        plan.clone_from(&put.plan);
    }
    puts
}

/// The id of a grant, from the facts of the entry that made it.
async fn name_told(walk: &mut Walk<'_>, grant: u64, granted_in: u64) -> Option<Arc<str>> {
    name_in(&walk.entry(granted_in).await.ok()?.facts, grant)
}

fn name_in(facts: &[Fact], grant: u64) -> Option<Arc<str>> {
    facts.iter().find_map(|fact| match fact {
        Fact::GrantMade(made) if made.grant == grant => Some(made.id.clone()),
        _ => None,
    })
}

#[cfg(test)]
impl Names {
    /// Knows that an account had a plan since an entry.
    pub(crate) fn with_plan(mut self, account: u32, put_in: u64, plan: &str) -> Names {
        self.plans.entry(account).or_default().push((put_in, Some(plan.into())));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::State;
    use crate::decision::command::{Change, Command, PutAccount, PutPolicy, Request, Stamp};
    use crate::edge::datasets::sample;
    use crate::units::{Millis, Span};

    /// A plan's grant of a day, ten days later: the state has forgotten it, and its postings say where it is named.
    #[test]
    fn a_recurring_grant_that_the_state_has_forgotten_is_named_by_the_entry_that_made_it() {
        let mut state = State::new();
        state.keep_facts(true);
        let document = r#"{"plans": {"plus": {"grants": [
            {"name": "daily", "credits": "10", "priority": 1, "every": {"days": 1}}
        ]}}}"#;
        let put = PutAccount {
            account: "acme",
            plan: Change::Set("plus"),
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Keep,
        };
        let commands = [
            Command::PutPolicy(PutPolicy { document, if_revision: None }),
            Command::PutAccount(put),
            Command::Tick,
        ];
        let mut entries = Vec::new();
        for (index, command) in (1..).zip(commands) {
            let at = Millis(Span::DAY.0 * if index < 3 { 100 } else { 110 });
            let stamp = Stamp { at, index, ..Stamp::default() };
            state.apply(stamp, &Request { key: None, command });
            entries.push((index, state.take_facts()));
        }
        let postings = entries.iter().flat_map(|(_, facts)| facts).filter_map(|fact| match fact {
            Fact::Posting(posting) => Some(posting),
            _ => None,
        });
        let forgotten = postings.filter(|posting| state.grant_id(posting.account, posting.grant).is_none());
        let mut named = 0;
        for posting in forgotten {
            let (_, facts) =
                entries.iter().find(|(index, _)| *index == posting.granted_in).expect("its entry");
            let name = name_in(facts, posting.grant).expect("it is told there");
            assert!(name.starts_with("plan:plus:daily:"), "{name}");
            named += 1;
        }
        assert!(named >= 2, "{named} postings of grants that are forgotten");
    }

    #[test]
    fn an_entry_tells_of_each_account_where_it_was_put_before_and_how_it_was_put_last() {
        let facts = vec![
            sample::account_put(1, 5, Some("plus")),
            sample::account_put(2, 0, None),
            sample::account_put(1, 7, None),
            sample::account_put(1, 7, Some("pro")),
            sample::account_put(3, 4, Some("plus")),
            sample::account_put(3, 7, None),
        ];
        let puts = puts_of(&Entry { index: 7, facts });
        let told = |account| puts.get(&account).map(|(before, plan)| (*before, plan.as_deref()));
        assert_eq!(told(1), Some((5, Some("pro"))));
        assert_eq!(told(2), Some((0, None)));
        assert_eq!(told(3), Some((4, None)));
        assert_eq!(told(4), None);
    }
}
