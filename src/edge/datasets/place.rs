//! Places in the datasets: cursors.

use std::fmt;
use std::str::FromStr;

/// A place in the log, between two facts. A cursor means everything before it. Since facts only ever come
/// behind those that are there, what is before a place never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) index: u64,
    /// The fact's number in its entry.
    pub(crate) number: u32,
}

#[derive(Debug)]
pub(crate) struct NotAPlace;

impl Place {
    /// Behind everything that the entry at `index` left.
    pub(crate) fn behind(index: u64) -> Place {
        Place { index, number: u32::MAX }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.number)
    }
}

impl FromStr for Place {
    type Err = NotAPlace;
    fn from_str(text: &str) -> Result<Place, NotAPlace> {
        let (index, number) = text.split_once('.').ok_or(NotAPlace)?;
        let index = index.parse().map_err(|_| NotAPlace)?;
        Ok(Place { index, number: number.parse().map_err(|_| NotAPlace)? })
    }
}
