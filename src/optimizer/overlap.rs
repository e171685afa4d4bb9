//! Buffers that overlap.

use std::ffi::c_void;
use std::fmt;

use crate::backend::Backend;
use crate::error::{Result, fail};

/// A contiguous buffer of a tensor, as an address range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Extent {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) what: &'static str,
    /// Gradients may overlap gradients.
    pub(crate) written: bool,
}

impl Extent {
    /// Refuses a buffer that is misaligned or wraps around the address space.
    pub(crate) fn new(
        what: &'static str,
        start: *const u8,
        numel: u64,
        size: usize,
        written: bool,
    ) -> Result<Self> {
        let address = start as usize;
        if !address.is_multiple_of(size) {
            fail!(
                InvalidBuffer,
                "{what} is {start:p}; it must be a multiple of {size}, the size of its elements"
            );
        }
        let bytes = (numel as usize).checked_mul(size);
        let Some(end) = bytes.and_then(|bytes| address.checked_add(bytes)) else {
            fail!(
                InvalidBuffer,
                "{what} is {start:p}; {numel} elements of {size} bytes go beyond the address space"
            );
        };
        Ok(Self {
            start: address,
            end,
            what,
            written,
        })
    }

    /// Refuses a buffer that the device cannot use.
    pub(crate) fn check_memory(&self, backend: &Backend) -> Result<()> {
        let bytes = (self.end - self.start) as u64;
        backend.check_memory(self.what, self.start as *const c_void, bytes)
    }

    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        (self.written || other.written) && self.start < other.end && other.start < self.end
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} ({:#x} to {:#x})",
            self.what, self.start, self.end
        )
    }
}

/// Two extents that conflict, of those of all tensors (with their indices), if there are any. Sorts them.
pub(crate) fn find(extents: &mut [(Extent, u64)]) -> Option<[(Extent, u64); 2]> {
    extents.sort_unstable_by_key(|(extent, _)| extent.start);
    // Of all extents that start before the present one, those that reach furthest.
    let mut furthest: Option<(Extent, u64)> = None;
    let mut furthest_written: Option<(Extent, u64)> = None;
    for &present in &*extents {
        let earlier = if present.0.written {
            furthest
        } else {
            furthest_written
        };
        if let Some(earlier) = earlier
            && earlier.0.conflicts_with(&present.0)
        {
            return Some([earlier, present]);
        }
        let reaches_further = |furthest: Option<(Extent, u64)>| {
            furthest.is_none_or(|furthest| present.0.end > furthest.0.end)
        };
        if reaches_further(furthest) {
            furthest = Some(present);
        }
        if present.0.written && reaches_further(furthest_written) {
            furthest_written = Some(present);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::mix64;

    #[test]
    fn a_sweep_finds_an_overlap_exactly_if_comparing_all_pairs_does() {
        let mut found = 0;
        for case in 0..20_000u64 {
            let count = 1 + case % 7;
            let mut extents: Vec<(Extent, u64)> = (0..count)
                .map(|i| {
                    let bits = mix64(case * 16 + i);
                    let start = (bits % 100) as usize;
                    let extent = Extent {
                        start,
                        end: start + 1 + (bits >> 20) as usize % 20,
                        what: "param",
                        written: bits >> 60 & 1 == 1,
                    };
                    (extent, i)
                })
                .collect();
            let expected = extents.iter().enumerate().any(|(i, one)| {
                extents[i + 1..]
                    .iter()
                    .any(|other| one.0.conflicts_with(&other.0))
            });
            let pair = find(&mut extents);
            assert_eq!(pair.is_some(), expected, "{extents:?}");
            if let Some([one, other]) = pair {
                found += 1;
                assert!(one.1 != other.1 && one.0.conflicts_with(&other.0));
            }
        }
        assert!(
            (2_000..18_000).contains(&found),
            "{found} of 20,000 cases overlap"
        );
    }

    #[test]
    fn what_wraps_around_the_address_space_is_refused() {
        let last = std::ptr::without_provenance::<u8>(usize::MAX - 15);
        assert!(Extent::new("param", last, 2, 4, true).is_ok());
        assert!(Extent::new("param", last, 4, 4, true).is_err());
        assert!(Extent::new("param", last.wrapping_add(1), 1, 4, true).is_err());
    }
}
