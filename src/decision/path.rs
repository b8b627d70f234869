//! Account paths: `acme:video:u17` is under `acme:video`, under `acme`.

use crate::decision::reply::{Reason, Refusal};

/// Levels that a path may have.
pub const LEVELS_MAX: usize = 4;
/// Characters that a segment may have.
pub const SEGMENT_LEN_MAX: usize = 64;

/// What the ids of recurring plan grants begin with, and no others.
pub(super) const PLAN_GRANT_PREFIX: &str = "plan:";
/// What the ids of the grants that top-ups end in begin with, and no others.
pub(super) const TOP_UP_GRANT_PREFIX: &str = "topup:";
/// What the ids of the grants ahead of top-ups begin with, and no others.
pub(super) const BRIDGE_GRANT_PREFIX: &str = "bridge:";
/// Characters that the id of a grant may have.
pub(super) const GRANT_ID_LEN_MAX: usize = 128;
/// Characters that the name of a feature, unit, plan, limit or attribute may have.
pub(super) const NAME_LEN_MAX: usize = 64;

/// Why a text is not the path of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("an account has at most {LEVELS_MAX} levels, separated by ':'")]
    TooDeep,
    #[error("each level of an account is 1 to {SEGMENT_LEN_MAX} of A-Z a-z 0-9 . _ @ + -")]
    Segment,
}

/// Checks that `path` can name an account.
pub fn check(path: &str) -> Result<(), PathError> {
    let mut levels = 0;
    for segment in path.split(':') {
        levels += 1;
        if levels > LEVELS_MAX {
            return Err(PathError::TooDeep);
        }
        if !is_segment(segment) {
            return Err(PathError::Segment);
        }
    }
    Ok(())
}

fn is_segment(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'+' | b'-');
    (1..=SEGMENT_LEN_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// The path one level up, if there is one.
pub(super) fn parent(path: &str) -> Option<&str> {
    path.rsplit_once(':').map(|(parent, _)| parent)
}

/// Whether `text` can name a grant: like a segment, with `:` and `/`, up to 128 characters.
pub(super) fn is_grant_id(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'+' | b'-' | b':' | b'/');
    (1..=GRANT_ID_LEN_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether `text` can name a feature, unit, plan, limit or attribute.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_LEN_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// Checks words that are kept for the record: something, not too long, without control characters.
pub(super) fn check_text(text: &str, field: &str, bytes_max: usize) -> Result<(), Box<Refusal>> {
    if (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let detail = format!("expected 1 to {bytes_max} bytes of text without control characters");
    Err(Refusal::of_field(Reason::TextInvalid, field, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_one_to_four_levels_of_plain_characters() {
        for path in ["a", "acme:video:u17", "a:b:c:d", "x.Y_z@1+2-3", &"s".repeat(64)] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        for path in ["", ":", "a:", ":a", "a::b", "a b", "a/b", "é", &"s".repeat(65), "a\0"] {
            assert_eq!(check(path), Err(PathError::Segment), "{path:?}");
        }
        assert_eq!(check("a:b:c:d:e"), Err(PathError::TooDeep));
    }
}
