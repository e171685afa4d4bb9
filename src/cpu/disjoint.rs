//! Memory that threads write disjoint parts of.

use std::marker::PhantomData;

/// Elements that threads write disjoint parts of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever accesses elements promises that no two threads touch the same one, unless both read.
unsafe impl<T: Send + Sync> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for Disjoint<'_, T> {}

impl<'a, T: Copy> Disjoint<'a, T> {
    pub(super) fn new(elements: &'a mut [T]) -> Self {
        Self {
            start: elements.as_mut_ptr(),
            len: elements.len(),
            memory: PhantomData,
        }
    }

    /// # Safety
    ///
    /// No thread writes to these elements meanwhile.
    pub(super) unsafe fn slice(&self, first: usize, len: usize) -> &'a [T] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: within the elements (asserted above), which are borrowed for as long; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(first), len) }
    }

    /// # Safety
    ///
    /// No other thread touches these elements meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice_mut(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}
