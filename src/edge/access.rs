//! Who may call what: bearer tokens, known only by their hashes, each with a role.
//!
//! A token is compared by looking its SHA-256 up in a map. What the time of that look-up could tell
//! is about the hash of what the caller sent, from which nothing about a valid token follows.

use std::collections::HashMap;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::edge::calls::Needs;
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;

/// What a token allows. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything.
    Read,
    /// Ask for admissions, settle, extend and release them, and use resets that were put by.
    Admit,
    /// Change accounts, grants, the policy and the cluster.
    Operate,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Admit => "admit",
            Role::Operate => "operate",
        }
    }
}

/// A token as the configuration holds it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// For people: whose it is.
    pub name: String,
    pub role: Role,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: TokenHash,
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> TokenHash {
        TokenHash(Sha256::digest(token.as_bytes()).into())
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(serde::de::Error::custom("expected 64 hexadecimal digits: the SHA-256 of a token"));
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |ascii: u8| char::from(ascii).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Ok(TokenHash(hash))
    }
}

/// The access rules of a node.
pub(crate) struct Access {
    roles: HashMap<TokenHash, Role>,
}

impl Access {
    /// Without tokens, everybody may do everything.
    pub(crate) fn new(tokens: &[Token]) -> Access {
        Access { roles: tokens.iter().map(|token| (token.sha256, token.role)).collect() }
    }

    /// Refuses a request whose token is missing, unknown or not enough.
    pub(crate) fn check(&self, needs: Needs, headers: &HeaderMap) -> Result<(), Problem> {
        let Needs::Role(needed) = needs else { return Ok(()) };
        if self.roles.is_empty() {
            return Ok(());
        }
        let Some(header) = headers.get(AUTHORIZATION) else {
            return Err(Problem::new(Kind::Unauthenticated, "this call needs a bearer token"));
        };
        let role = bearer(header.as_bytes())
            .and_then(|token| self.roles.get(&TokenHash(Sha256::digest(token).into())))
            .ok_or_else(|| Problem::new(Kind::Unauthenticated, "the bearer token is not known here"))?;
        if *role < needed {
            let detail = format!("this call needs the role {}, the token has {}", needed.name(), role.name());
            return Err(Problem::new(Kind::Forbidden, detail));
        }
        Ok(())
    }
}

/// The token in `Bearer …`; the word in any case, as HTTP has it.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().expect("a header value"));
        headers
    }

    #[test]
    fn a_role_may_do_what_lesser_roles_may() {
        let token = Token { name: "gate".into(), role: Role::Admit, sha256: TokenHash::of("secret") };
        let access = Access::new(&[token]);
        let asks = |needs, authorization| access.check(needs, &headers(authorization)).map_err(|p| p.kind());
        assert_eq!(asks(Needs::Role(Role::Read), "Bearer secret"), Ok(()));
        assert_eq!(asks(Needs::Role(Role::Admit), "bearer secret"), Ok(()));
        assert_eq!(asks(Needs::Role(Role::Operate), "Bearer secret"), Err(Kind::Forbidden));
        assert_eq!(asks(Needs::Role(Role::Read), "Bearer wrong"), Err(Kind::Unauthenticated));
        assert_eq!(asks(Needs::Role(Role::Read), "Basic secret"), Err(Kind::Unauthenticated));
        assert_eq!(asks(Needs::Nothing, "nonsense"), Ok(()));
    }

    #[test]
    fn reads_a_hash_in_either_case_and_nothing_else() {
        let hash = TokenHash::of("secret");
        let text: String = hash.0.iter().map(|byte| format!("{byte:02X}")).collect();
        let read = |text: &str| serde_json::from_value::<TokenHash>(serde_json::json!(text));
        assert_eq!(read(&text).expect("upper case"), hash);
        assert_eq!(read(&text.to_lowercase()).expect("lower case"), hash);
        assert!(read(&text[1..]).is_err());
        assert!(read(&format!("é{}", &text[2..])).is_err());
    }
}
