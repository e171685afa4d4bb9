//! Finding a tensor by its name.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::error::{Error, Result};

/// Indices by the hashes of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    indices: HashMap<u64, usize, BuildHasherDefault<AsItIs>>,
    /// Two names had the same hash, of 64 bits. The table has one of them; all must be looked at.
    pub(super) collided: bool,
}

impl Names {
    /// Makes room for one more.
    pub(super) fn reserve(&mut self) -> Result<()> {
        let entry = size_of::<(u64, usize)>();
        self.indices
            .try_reserve(1)
            .map_err(|_| Error::out_of_memory("the table of names", entry))
    }

    pub(super) fn insert(&mut self, name_hash: u64, index: usize) {
        self.collided |= self.indices.contains_key(&name_hash);
        self.indices.entry(name_hash).or_insert(index);
    }

    pub(super) fn remove(&mut self, name_hash: u64, index: usize) {
        if self.get(name_hash) == Some(index) {
            self.indices.remove(&name_hash);
        }
    }

    pub(super) fn get(&self, name_hash: u64) -> Option<usize> {
        self.indices.get(&name_hash).copied()
    }

    pub(super) fn bytes(&self) -> usize {
        self.indices.capacity() * size_of::<(u64, usize)>()
    }
}

/// The keys are hashes already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
