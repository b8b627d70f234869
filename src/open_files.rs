//! How many files this process may open, and for what they are.
//!
//! A node that can open no more files cannot write its log, and ends. So connections must never take the last of
//! them, whoever makes them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a node keeps for its log, checkpoints and facts, for peers and for those who are told to go: far more than these
/// ever take.
const KEPT: u64 = 768;

/// How many connections of clients there may be, where the configuration wants so many. Asks the system for as many
/// open files as it allows this process, and says so where they are too few.
pub(crate) fn connections_max(wanted: usize) -> usize {
    let allowed = raise();
    let most = most(allowed, wanted);
    if most < wanted {
        let allowed = allowed.unwrap_or(u64::MAX);
        tracing::warn!(
            allowed,
            wanted,
            connections_max = most,
            "few files may be open: fewer clients may connect"
        );
    }
    most
}

/// Raises what is allowed as far as the system lets this process; none where there is no end to it.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, allowed = current, "no more files may be open");
            current
        }
    }
}

fn most(allowed: Option<u64>, wanted: usize) -> usize {
    let Some(allowed) = allowed else { return wanted };
    // A node that may open very few files serves some clients all the same.
    let rest = allowed.saturating_sub(KEPT).max(allowed / 4).max(1);
    usize::try_from(rest).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest_of_the_node() {
        assert_eq!(most(None, 1_024), 1_024);
        assert_eq!(most(Some(1_048_576), 1_024), 1_024);
        assert_eq!(most(Some(2_000), 1_024), 1_024);
        assert_eq!(most(Some(1_024), 1_024), 256);
        assert_eq!(most(Some(256), 1_024), 64);
        assert_eq!(most(Some(0), 1_024), 1);
    }
}
