//! Large blocks: whole huge pages, each block mapped separately. Freed ranges may be kept and
//! reused for parts of later blocks.
use super::{HUGE_PAGE_BYTES, map, unmap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The minimum size of a large block, in bytes.
pub(super) const MIN_LARGE_BYTES: usize = 4 << 20;
/// Maximum total size of the free ranges; anything beyond is returned to the system immediately.
const MAX_FREE_BYTES: usize = 512 << 20;
/// Maximum number of free ranges.
const MAX_FREE_RANGES: usize = 32;

static RANGES: Mutex<Ranges> = Mutex::new(Ranges::NONE);

pub(super) fn ranges() -> MutexGuard<'static, Ranges> {
    RANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    start: usize,
    length: usize,
}

/// The free ranges, unordered. Of fixed size, since an allocator cannot allocate for itself.
pub(super) struct Ranges {
    free: [Range; MAX_FREE_RANGES],
    count: usize,
    bytes: usize,
    /// The number of allocations so far.
    pub allocations: u64,
}

fn whole_pages(size: usize) -> Option<usize> {
    size.checked_next_multiple_of(HUGE_PAGE_BYTES)
}

impl Ranges {
    const NONE: Ranges = Ranges {
        free: [Range { start: 0, length: 0 }; MAX_FREE_RANGES],
        count: 0,
        bytes: 0,
        allocations: 0,
    };

    /// Allocates a block; returns whether it is new from the system (then it is zeroed).
    pub(super) fn allocate(&mut self, size: usize) -> (*mut u8, bool) {
        let Some(length) = whole_pages(size) else {
            return (std::ptr::null_mut(), true);
        };
        let fitting = self.free_ranges().enumerate().filter(|(_, range)| range.length >= length);
        let smallest = fitting.min_by_key(|(_, range)| range.length);
        let Some((at, range)) = smallest else { return (map(length), true) };
        self.remove(at);
        let rest = Range {
            start: range.start + length,
            length: range.length - length,
        };
        if rest.length > 0 {
            self.add(rest);
        }
        (range.start as *mut u8, false)
    }

    pub(super) fn free(&mut self, block: *mut u8, size: usize, cache: bool) {
        let Some(length) = whole_pages(size) else { return };
        let start = block as usize;
        match cache && self.bytes + length <= MAX_FREE_BYTES {
            true => self.add(Range { start, length }),
            false => unmap(start, length),
        }
    }

    /// Whether the block can be resized in place.
    pub(super) fn resize(&mut self, block: *mut u8, old: usize, new: usize, cache: bool) -> bool {
        let (Some(old), Some(new)) = (whole_pages(old), whole_pages(new)) else {
            return false;
        };
        if new < old {
            self.free((block as usize + new) as *mut u8, old - new, cache);
        }
        new <= old
    }

    pub(super) fn release_unused(&mut self) {
        for range in &self.free[..self.count] {
            unmap(range.start, range.length);
        }
        (self.count, self.bytes) = (0, 0);
    }

    fn free_ranges(&self) -> impl Iterator<Item = Range> {
        self.free.iter().take(self.count).copied()
    }

    /// Merges the range with its neighbours. If the table is full, returns it to the system.
    fn add(&mut self, mut range: Range) {
        let touches = |a: &Range, b: &Range| a.start + a.length == b.start || b.start + b.length == a.start;
        loop {
            let found = self.free_ranges().position(|near| touches(&near, &range));
            let Some(at) = found else { break };
            let near = self.free[at];
            self.remove(at);
            range = Range {
                start: range.start.min(near.start),
                length: range.length + near.length,
            };
        }
        match self.free.get_mut(self.count) {
            Some(place) => {
                *place = range;
                self.count += 1;
                self.bytes += range.length;
            }
            None => unmap(range.start, range.length),
        }
    }

    fn remove(&mut self, at: usize) {
        self.count -= 1;
        self.bytes -= self.free[at].length;
        self.free[at] = self.free[self.count];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_are_split_and_merged() {
        let mut ranges = Ranges::NONE;
        let (whole, is_new) = ranges.allocate(5 * HUGE_PAGE_BYTES - 3);
        assert!(is_new && (whole as usize).is_multiple_of(HUGE_PAGE_BYTES));
        ranges.free(whole, 5 * HUGE_PAGE_BYTES - 3, true);
        let (first, is_new) = ranges.allocate(2 * HUGE_PAGE_BYTES);
        assert!(!is_new && first == whole);
        let (second, is_new) = ranges.allocate(2 * HUGE_PAGE_BYTES + 1);
        assert!(!is_new && second as usize == whole as usize + 2 * HUGE_PAGE_BYTES);
        assert_eq!((ranges.count, ranges.bytes), (0, 0));
        ranges.free(first, 2 * HUGE_PAGE_BYTES, true);
        assert!(!ranges.resize(second, 2 * HUGE_PAGE_BYTES + 1, 4 * HUGE_PAGE_BYTES, true));
        assert!(ranges.resize(second, 2 * HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES, true));
        assert_eq!((ranges.count, ranges.bytes), (2, 4 * HUGE_PAGE_BYTES));
        ranges.free(second, HUGE_PAGE_BYTES, true);
        assert_eq!((ranges.count, ranges.bytes), (1, 5 * HUGE_PAGE_BYTES));
        ranges.release_unused();
        assert_eq!((ranges.count, ranges.bytes), (0, 0));
    }

    #[test]
    fn the_free_ranges_are_limited_and_empty_without_caching() {
        let mut ranges = Ranges::NONE;
        let blocks: Vec<*mut u8> = (0..10).map(|_| ranges.allocate(MAX_FREE_BYTES / 8).0).collect();
        for (i, block) in blocks.into_iter().enumerate() {
            ranges.free(block, MAX_FREE_BYTES / 8, i > 0);
            assert!(ranges.bytes <= MAX_FREE_BYTES);
        }
        assert_eq!(ranges.bytes, MAX_FREE_BYTES);
        ranges.release_unused();
        // More ranges than the table holds, none adjacent to another.
        let blocks: Vec<*mut u8> = (0..3 * MAX_FREE_RANGES).map(|_| ranges.allocate(MIN_LARGE_BYTES).0).collect();
        for block in blocks.iter().step_by(2) {
            ranges.free(*block, MIN_LARGE_BYTES, true);
        }
        assert!(ranges.count <= MAX_FREE_RANGES);
        for block in blocks.iter().skip(1).step_by(2) {
            ranges.free(*block, MIN_LARGE_BYTES, true);
        }
        ranges.release_unused();
    }
}
