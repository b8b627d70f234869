//! The names of what facts name by numbers, as far as one answer needs them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::decision::facts::Fact;
use crate::replication::Replica;

#[derive(Default)]
pub(crate) struct Names {
    accounts: HashMap<u32, Named>,
    grants: HashMap<(u32, u64), Arc<str>>,
}

struct Named {
    path: Arc<str>,
    plan: Option<Arc<str>>,
}

impl Names {
    /// Looks up what `facts` name and is not known yet: once for all of them. Accounts and grants are never
    /// renamed, so this node's own state is fresh enough. A grant that ended long ago is forgotten by the
    /// state: it is called by its number, as the fact that made it numbers it.
    pub(crate) fn learn(&mut self, replica: &Replica, facts: &[Fact]) {
        let accounts: HashSet<u32> = facts
            .iter()
            .filter_map(Fact::account)
            .filter(|number| !self.accounts.contains_key(number))
            .collect();
        let grants: HashSet<(u32, u64)> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Posting(posting) => Some((posting.account, posting.grant)),
                _ => None,
            })
            .filter(|grant| !self.grants.contains_key(grant))
            .collect();
        if accounts.is_empty() && grants.is_empty() {
            return;
        }
        replica.read_local(|state| {
            for number in accounts {
                let Some(path) = state.account_path(number) else { continue };
                let plan = state.account_plan(number).cloned();
                self.accounts.insert(number, Named { path: path.clone(), plan });
            }
            for (account, grant) in grants {
                let id = state.grant_id(account, grant).cloned();
                let id = id.unwrap_or_else(|| format!("(ended grant {grant})").into());
                self.grants.insert((account, grant), id);
            }
        });
    }

    pub(crate) fn account(&self, number: u32) -> Option<&Arc<str>> {
        self.accounts.get(&number).map(|named| &named.path)
    }

    /// The plan that the account has today.
    pub(crate) fn plan(&self, number: u32) -> Option<&Arc<str>> {
        self.accounts.get(&number)?.plan.as_ref()
    }

    pub(crate) fn grant(&self, account: u32, number: u64) -> Option<&Arc<str>> {
        self.grants.get(&(account, number))
    }
}
