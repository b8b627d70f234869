//! The signature of a delivery: HMAC-SHA-256 over the time and the body, by a secret that the receiver has.
//!
//! `t=1801440000,v1=5257…`: seconds since 1970 in UTC, and the code of `1801440000.` with the body behind it,
//! in hexadecimal digits. While a secret is replaced there is one code for the old and one for the new one.

use std::fmt::Write as _;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The header of a delivery at this time, by each of the secrets.
pub(super) fn signature(secrets: &[Vec<u8>], unix_seconds: u64, body: &[u8]) -> String {
    let mut text = format!("t={unix_seconds}");
    for secret in secrets {
        text.push_str(",v1=");
        for byte in code(secret, unix_seconds, body) {
            // Writing to a text cannot fail.
            let _infallible = write!(text, "{byte:02x}");
        }
    }
    text
}

fn code(secret: &[u8], unix_seconds: u64, body: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(unix_seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_others_do() {
        // printf '1801440000.{"id":"top_1"}' | openssl dgst -sha256 -hmac 'a secret of 16 b'
        let secrets = [b"a secret of 16 b".to_vec()];
        let expected = "8cc29876ac18e8fd779b9ec9657a4a0e3130d01f21355dded03ed4b9b2316e20";
        let signed = signature(&secrets, 1_801_440_000, br#"{"id":"top_1"}"#);
        assert_eq!(signed, format!("t=1801440000,v1={expected}"));
    }

    #[test]
    fn every_secret_has_its_code() {
        let secrets = [b"one".to_vec(), b"two".to_vec()];
        let both = signature(&secrets, 7, b"x");
        let one = signature(&secrets[..1], 7, b"x");
        assert!(both.starts_with(&one) && both.matches(",v1=").count() == 2, "{both}");
    }
}
