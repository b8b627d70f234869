//! Requests rendered once, and patched in place for each sending.

use super::Plan;

/// Digits of an account's number.
const ACCOUNT_DIGITS: usize = 7;
/// Digits of an idempotency key: the run, the connection and the sequence, each in hexadecimal.
const KEY_DIGITS: usize = 16;

/// The bytes of a request, and where in them the parts are that change.
#[derive(Clone, Debug, Default)]
pub(super) struct Template {
    bytes: Vec<u8>,
    accounts: Vec<usize>,
    keys: Vec<usize>,
}

/// A body under construction: text, with places for account numbers and keys.
#[derive(Debug, Default)]
pub(super) struct Body(Template);

impl Body {
    pub fn text(mut self, text: &str) -> Body {
        self.0.text(text);
        self
    }

    /// A place for the number of an account.
    pub fn account(mut self) -> Body {
        self.0.accounts.push(self.0.bytes.len());
        self.0.text(&"0".repeat(ACCOUNT_DIGITS));
        self
    }

    /// A place for an idempotency key.
    pub fn key(mut self) -> Body {
        self.0.key();
        self
    }
}

impl Template {
    /// A JSON request. With `key_header` it carries an `Idempotency-Key`.
    pub fn post(plan: &Plan, node: &str, path: &str, key_header: bool, body: Body) -> Template {
        let mut template = Template::default();
        template.text(&head(plan, node, "POST", path));
        if key_header {
            template.text("idempotency-key: \"");
            template.key();
            template.text("\"\r\n");
        }
        let Template { bytes, accounts, keys } = body.0;
        template.text(&format!("content-length: {}\r\n\r\n", bytes.len()));
        let start = template.bytes.len();
        template.bytes.extend_from_slice(&bytes);
        template.accounts.extend(accounts.iter().map(|at| start + at));
        template.keys.extend(keys.iter().map(|at| start + at));
        template
    }

    /// Fills in the accounts and the keys, in their order, and gives the bytes to send.
    pub fn fill(&mut self, mut account: impl FnMut() -> u32, mut key: impl FnMut() -> u64) -> &[u8] {
        for at in &self.accounts {
            decimal(account(), &mut self.bytes[*at..at + ACCOUNT_DIGITS]);
        }
        for at in &self.keys {
            hexadecimal(key(), &mut self.bytes[*at..at + KEY_DIGITS]);
        }
        &self.bytes
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn key(&mut self) {
        self.keys.push(self.bytes.len());
        self.text(&"0".repeat(KEY_DIGITS));
    }
}

/// A whole JSON request, for what is sent once.
pub(super) fn once(plan: &Plan, node: &str, method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let head = head(plan, node, method, path);
    format!("{head}{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The name of an account.
pub(super) fn account(plan: &Plan, number: u32) -> String {
    format!("{}{number:0width$}", plan.prefix, width = ACCOUNT_DIGITS)
}

fn head(plan: &Plan, node: &str, method: &str, path: &str) -> String {
    let token = match &plan.token {
        Some(token) => format!("authorization: Bearer {token}\r\n"),
        None => String::new(),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: {node}\r\n{token}content-type: application/json\r\n")
}

fn decimal(mut number: u32, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn hexadecimal(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        number /= 16;
    }
}

/// A stream of numbers that a seed and a connection determine (SplitMix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64, connection: u64) -> Random {
        let mut random = Random(seed ^ connection.wrapping_mul(0xa076_1d64_78bd_642f));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, each about as likely.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_their_places() {
        let mut place = *b"xxxxxxx";
        decimal(90_210, &mut place);
        assert_eq!(&place, b"0090210");
        let mut place = *b"0000000000000000";
        hexadecimal(0xdead_beef, &mut place);
        assert_eq!(&place, b"00000000deadbeef");
    }

    #[test]
    fn the_choice_of_accounts_is_even_and_repeatable() {
        let mut counts = [0_u32; 10];
        let mut random = Random::new(7, 3);
        let mut again = Random::new(7, 3);
        for _ in 0..100_000 {
            let account = random.below(10);
            assert_eq!(account, again.below(10));
            counts[account as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_ne!(Random::new(7, 3).next(), Random::new(7, 4).next());
    }
}
