//! The books of a replay: what the answers said was paid, held against what the accounts say.
//!
//! Every operation has a key and every outcome is known, so that the two must agree exactly. What the
//! accounts had before is read when they are opened; nobody else may use them meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::client::{
    AccountUpdate, AccountView, Client, ClientError, GrantRequest, GrantSource, Payer, Payment,
};
use crate::units::Credits;

/// The drawing order of the grants that a replay gives: after all that people were given.
const GRANT_PRIORITY: u32 = 1_000;

/// What every account of a replay is opened with.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub plan: Option<String>,
    pub grant: Option<Credits>,
    /// Names this run, and so its grants and its keys.
    pub run: String,
}

/// All accounts that a replay touched.
#[derive(Debug)]
pub(super) struct Books {
    opening: Opening,
    /// The accounts above all others, from the root down.
    ancestors: Vec<Arc<Account>>,
    accounts: Mutex<HashMap<Arc<str>, Arc<Account>>>,
}

/// One account, and what its own wallet should say.
#[derive(Debug)]
pub(super) struct Account {
    pub name: Arc<str>,
    /// How many segments its name has.
    level: usize,
    before: OnceCell<Drawn>,
    paid: Mutex<Drawn>,
}

/// What was drawn from a wallet: spent or held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Drawn {
    total: i128,
    by_grant: BTreeMap<String, i128>,
    /// Whether answers summed up grants that they did not name: then only the total is known.
    summed: bool,
}

impl Drawn {
    fn of(view: &AccountView) -> Drawn {
        let sum =
            |credits: &crate::client::BalancesView| i128::from(credits.spent.0) + i128::from(credits.held.0);
        Drawn {
            total: sum(&view.credits),
            by_grant: view.grants.iter().map(|grant| (grant.id.clone(), sum(&grant.credits))).collect(),
            summed: false,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Millionths as a decimal; beyond the range of credits, which no wallet reaches, as they are.
fn shown(micros: i128) -> String {
    i64::try_from(micros)
        .map_or_else(|_| format!("{micros} millionths"), |micros| Credits(micros).to_string())
}

impl Account {
    fn new(name: Arc<str>) -> Arc<Account> {
        let level = name.split(':').count();
        Arc::new(Account { name, level, before: OnceCell::new(), paid: Mutex::default() })
    }

    /// Notes what its grant paid, or where no grant is named, several of them.
    fn pay(&self, grant: Option<&str>, credits: Credits) {
        let mut paid = locked(&self.paid);
        paid.total += i128::from(credits.0);
        let Some(grant) = grant else {
            paid.summed = true;
            return;
        };
        match paid.by_grant.get_mut(grant) {
            Some(sum) => *sum += i128::from(credits.0),
            None => _ = paid.by_grant.insert(grant.to_owned(), credits.0.into()),
        }
    }

    /// What is wrong with the account, in words.
    fn compare(&self, view: &AccountView) -> Vec<String> {
        let mut wrong = Vec::new();
        if !view.credits.balance() {
            wrong.push(format!("{}: what was granted is not what is there", self.name));
        }
        for grant in view.grants.iter().filter(|grant| !grant.credits.balance()) {
            wrong.push(format!("{}: grant {} does not balance", self.name, grant.id));
        }
        let nothing = Drawn::default();
        let before = self.before.get().unwrap_or(&nothing);
        let now = Drawn::of(view);
        let paid = locked(&self.paid);
        if now.total - before.total != paid.total {
            wrong.push(format!(
                "{}: answers said that its grants paid {}, its wallet says {}",
                self.name,
                shown(paid.total),
                shown(now.total - before.total)
            ));
        }
        for (grant, drawn) in now.by_grant.iter().filter(|_| !paid.summed) {
            let drawn = drawn - before.by_grant.get(grant).unwrap_or(&0);
            let told = *paid.by_grant.get(grant).unwrap_or(&0);
            if drawn != told {
                let (told, drawn) = (shown(told), shown(drawn));
                wrong.push(format!(
                    "{}: answers said that grant {grant} paid {told}, it says {drawn}",
                    self.name
                ));
            }
        }
        for limit in view.limits.iter().filter(|limit| limit.used > limit.quota) {
            let (name, used, quota) = (&limit.name, limit.used, limit.quota);
            wrong.push(format!("{}: limit {name} was exceeded: {used} of {quota}", self.name));
        }
        wrong
    }
}

impl Books {
    /// Opens the accounts above all others, and notes what they have.
    pub async fn open(client: &Client, prefix: &str, opening: Opening) -> Result<Books, ClientError> {
        client.put_account(None, prefix, &AccountUpdate::default()).await?;
        let mut ancestors = Vec::new();
        for (end, _) in prefix.match_indices(':').chain([(prefix.len(), "")]) {
            let account = Account::new(prefix[..end].into());
            let view = client.account(&account.name).await?.value;
            // The account is new: its cell is empty.
            account.before.get_or_init(|| async { Drawn::of(&view) }).await;
            ancestors.push(account);
        }
        Ok(Books { opening, ancestors, accounts: Mutex::default() })
    }

    /// The account of this name, opened in the cluster before it is first used.
    pub async fn account(&self, client: &Client, name: &Arc<str>) -> Result<Arc<Account>, ClientError> {
        let account = {
            let mut accounts = locked(&self.accounts);
            accounts.entry(name.clone()).or_insert_with(|| Account::new(name.clone())).clone()
        };
        account.before.get_or_try_init(|| self.open_account(client, name)).await?;
        Ok(account)
    }

    async fn open_account(&self, client: &Client, name: &str) -> Result<Drawn, ClientError> {
        let update =
            AccountUpdate { plan: self.opening.plan.as_deref().map(Some), ..AccountUpdate::default() };
        let mut view = client.put_account(None, name, &update).await?.value;
        if view.grants_total > view.grants.len() as u64 {
            // The answer to a change lists only the first grants.
            view = client.account(name).await?.value;
        }
        if let Some(credits) = self.opening.grant {
            let grant = GrantRequest {
                id: &self.opening.run,
                source: GrantSource::Promotion,
                credits,
                priority: Some(GRANT_PRIORITY),
                effective_at: None,
                expires_at: None,
                reason: None,
            };
            client.add_grant(None, name, &grant).await?;
        }
        Ok(Drawn::of(&view))
    }

    /// Notes what an answer said. Only what grants paid is in wallets.
    pub fn note(&self, account: &Account, payments: &[Payment]) {
        for payment in payments {
            let (level, grant) = match &payment.payer {
                Payer::Limit { .. } => continue,
                Payer::Grant { level, id } => (usize::from(*level), Some(id.as_str())),
                Payer::OtherGrants { level, .. } => (usize::from(*level), None),
            };
            match self.ancestors.get(level.wrapping_sub(1)) {
                Some(ancestor) if level < account.level => ancestor.pay(grant, payment.credits),
                _ => account.pay(grant, payment.credits),
            }
        }
    }

    /// How many accounts are above all others.
    pub fn ancestors(&self) -> usize {
        self.ancestors.len()
    }

    /// Everything to be compared at the end.
    pub fn all(&self) -> Vec<Arc<Account>> {
        let mut all: Vec<_> = locked(&self.accounts).values().cloned().collect();
        all.retain(|account| account.before.initialized());
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all.extend(self.ancestors.iter().cloned());
        all
    }
}

/// Asks for one account and says what is wrong with it.
pub(super) async fn verify(client: &Client, account: &Account) -> Result<Vec<String>, ClientError> {
    Ok(account.compare(&client.account(&account.name).await?.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(json: serde_json::Value) -> AccountView {
        serde_json::from_value(json).expect("an account")
    }

    fn wallet(granted: &str, available: &str, spent: &str, used: &str) -> AccountView {
        let credits = serde_json::json!({"granted": granted, "available": available, "held": "0",
            "spent": spent, "expired": "0", "revoked": "0"});
        view(serde_json::json!({
            "account": "a:b", "state": "open", "credits": credits, "holds": [],
            "limits": [{"name": "week", "level": 2, "unit": "credits", "quota": "10", "used": used, "remaining": "0"}],
            "grants": [{"id": "g", "source": "purchase", "priority": 1, "created_at": "2026-11-22T15:00:00Z",
                        "effective_at": "2026-11-22T15:00:00Z", "credits": credits}]
        }))
    }

    async fn account(before: &AccountView) -> Arc<Account> {
        let account = Account::new("a:b".into());
        account.before.get_or_init(|| async { Drawn::of(before) }).await;
        account
    }

    #[tokio::test]
    async fn books_that_agree_are_in_order() {
        let account = account(&wallet("100", "90", "10", "0")).await;
        account.pay(Some("g"), Credits(5_000_000));
        assert_eq!(account.compare(&wallet("100", "85", "15", "10")), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_payment_that_the_wallet_does_not_know_is_named() {
        let account = account(&wallet("100", "90", "10", "0")).await;
        account.pay(Some("g"), Credits(5_000_000));
        assert_eq!(
            account.compare(&wallet("100", "90", "10", "0")),
            [
                "a:b: answers said that its grants paid 5, its wallet says 0",
                "a:b: answers said that grant g paid 5, it says 0"
            ]
        );
    }

    #[tokio::test]
    async fn grants_that_an_answer_does_not_name_count_in_the_total() {
        let account = account(&wallet("100", "90", "10", "0")).await;
        account.pay(None, Credits(5_000_000));
        assert_eq!(account.compare(&wallet("100", "85", "15", "10")), Vec::<String>::new());
        assert_eq!(
            account.compare(&wallet("100", "84", "16", "10")),
            ["a:b: answers said that its grants paid 5, its wallet says 6"]
        );
    }

    #[tokio::test]
    async fn books_that_do_not_add_up_and_limits_that_were_exceeded_are_named() {
        let account = account(&wallet("100", "100", "0", "0")).await;
        assert_eq!(
            account.compare(&wallet("100", "99", "0", "10.5")),
            [
                "a:b: what was granted is not what is there",
                "a:b: grant g does not balance",
                "a:b: limit week was exceeded: 10.5 of 10"
            ]
        );
    }
}
