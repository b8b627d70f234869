//! Records in pages that a frozen copy shares until they change.
//!
//! [`Pages`] is a growing array cut into pages behind reference counts. Cloning it costs one count
//! for each page, whatever is in them; the first change to a page after that copies this page
//! alone. That is what lets a checkpoint be written while commands go on being applied.
//!
//! [`Slab`] adds removal: free places are used again, last freed first. Places are for the state's
//! own indexes and never leave it, because a state restored from a checkpoint numbers them anew.

use std::sync::Arc;

/// Records in a page: enough to make sharing cheap, few enough to make copying one cheap.
const PAGE_LEN: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Pages<T> {
    pages: Vec<Arc<Vec<T>>>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Pages<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, place: usize) -> Option<&T> {
        self.pages.get(place / PAGE_LEN)?.get(place % PAGE_LEN)
    }

    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        Arc::make_mut(self.pages.get_mut(place / PAGE_LEN)?).get_mut(place % PAGE_LEN)
    }

    /// Adds a record behind the last one and returns its place.
    pub fn push(&mut self, record: T) -> usize {
        let place = self.len;
        if place.is_multiple_of(PAGE_LEN) {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE_LEN)));
        }
        let page = Arc::make_mut(self.pages.last_mut().expect("a page with room was just made sure of"));
        page.push(record);
        self.len += 1;
        place
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter())
    }

    /// The pages, all of them full but the last.
    pub fn pages(&self) -> impl Iterator<Item = &Arc<Vec<T>>> {
        self.pages.iter()
    }

    /// Adds records behind the last one: as they are, where they can be a page.
    pub fn append(&mut self, records: Arc<Vec<T>>) {
        if self.len.is_multiple_of(PAGE_LEN) && (1..=PAGE_LEN).contains(&records.len()) {
            self.len += records.len();
            self.pages.push(records);
            return;
        }
        let records = Arc::try_unwrap(records).unwrap_or_else(|shared| (*shared).clone());
        records.into_iter().for_each(|record| {
            self.push(record);
        });
    }
}

#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    places: Pages<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Pages::default(), free: Vec::new() }
    }
}

impl<T: Clone> Slab<T> {
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// How many places there are, free ones included.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    pub fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub fn insert(&mut self, record: T) -> u32 {
        match self.free.pop() {
            Some(place) => {
                let slot = self.places.get_mut(place as usize).expect("a free place is a place");
                debug_assert!(slot.is_none(), "a free place is empty");
                *slot = Some(record);
                place
            }
            None => u32::try_from(self.places.push(Some(record))).expect("fewer than 2^32 records"),
        }
    }

    pub fn remove(&mut self, place: u32) -> Option<T> {
        let record = self.places.get_mut(place as usize)?.take();
        if record.is_some() {
            self.free.push(place);
        }
        record
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }

    /// The records from a place on, with the place of each.
    pub fn iter_from(&self, first: u32) -> impl Iterator<Item = (u32, &T)> {
        let places = first as usize..self.places.len();
        places.filter_map(|place| Some((place as u32, self.places.get(place)?.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_copy_keeps_what_was() {
        let mut pages = Pages::default();
        for n in 0..200 {
            assert_eq!(pages.push(n), n);
        }
        let frozen = pages.clone();
        *pages.get_mut(70).expect("a place") = 999;
        pages.push(200);
        assert_eq!(frozen.iter().copied().collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        assert_eq!((pages.get(70), pages.get(200), frozen.get(200)), (Some(&999), Some(&200), None));
        // Only the pages that changed were copied.
        let shared = pages.pages.iter().zip(&frozen.pages).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, frozen.pages.len() - 2);
    }

    #[test]
    fn appended_records_have_the_places_behind_the_last() {
        let mut pages = Pages::default();
        // Whole pages, parts of one, and more than one.
        for length in [PAGE_LEN, 3, PAGE_LEN, 1, 0, 3 * PAGE_LEN] {
            let first = pages.len();
            pages.append(Arc::new((first..first + length).collect()));
            assert_eq!(pages.len(), first + length);
            assert_eq!(pages.push(first + length), first + length);
        }
        assert!((0..pages.len()).all(|place| pages.get(place) == Some(&place)));
        assert_eq!(pages.iter().copied().collect::<Vec<_>>(), (0..pages.len()).collect::<Vec<_>>());
    }

    #[test]
    fn freed_places_are_used_again() {
        let mut slab = Slab::default();
        let places: Vec<u32> = (0..5).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.remove(places[1]), Some(1));
        assert_eq!(slab.remove(places[1]), None);
        assert_eq!(slab.len(), 4);
        assert_eq!(slab.insert(9), places[1]);
        assert_eq!(slab.iter().copied().collect::<Vec<_>>(), [0, 9, 2, 3, 4]);
    }
}
