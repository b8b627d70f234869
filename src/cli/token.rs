//! `quorate token`: a random access token, and the hash of it that a node's configuration keeps.

use sha2::{Digest, Sha256};

use crate::cli::{CliError, Done, Global};

/// How much chance is in a token.
const TOKEN_BYTES: usize = 32;

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn run(global: &Global) -> Result<Done, CliError> {
    let mut bits = [0; TOKEN_BYTES];
    getrandom::fill(&mut bits).map_err(CliError::Random)?;
    let token = format!("qrt_{}", hexadecimal(&bits));
    let sha256 = hexadecimal(&Sha256::digest(token.as_bytes()));
    Ok(Done::ok(match global.json {
        true => format!("{}\n", serde_json::json!({"token": token, "sha256": sha256})),
        false => format!(
            "token   {token}\nsha256  {sha256}\n\n\
             Give the token to who may ask; it is kept nowhere. Put the hash into each node's configuration:\n\n\
             [[access.tokens]]\nname = \"…\"\nrole = \"admit\"  # or \"read\", \"operate\"\nsha256 = \"{sha256}\"\n"
        ),
    }))
}
