//! Large blocks: whole huge pages, each block mapped separately. Freed ranges may be kept and
//! reused for parts of later blocks.
use super::{LARGE_PAGE, map, unmap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The minimum size of a large block, in bytes.
pub const LARGE: usize = 4 << 20;
/// Maximum total size of the free ranges; anything beyond is returned to the system immediately.
const MOST_KEPT: usize = 512 << 20;
/// Maximum number of free ranges.
const MOST_RANGES: usize = 32;

static RANGES: Mutex<Ranges> = Mutex::new(Ranges::NONE);

pub fn ranges() -> MutexGuard<'static, Ranges> {
    RANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    start: usize,
    length: usize,
}

/// The free ranges, unordered. Of fixed size, since an allocator cannot allocate for itself.
pub struct Ranges {
    free: [Range; MOST_RANGES],
    count: usize,
    bytes: usize,
    /// The number of allocations so far.
    pub taken: u64,
}

fn whole_pages(size: usize) -> Option<usize> {
    size.checked_next_multiple_of(LARGE_PAGE)
}

impl Ranges {
    const NONE: Ranges = Ranges {
        free: [Range { start: 0, length: 0 }; MOST_RANGES],
        count: 0,
        bytes: 0,
        taken: 0,
    };

    /// Allocates a block; returns whether it is new from the system (then it is zeroed).
    pub fn take(&mut self, size: usize) -> (*mut u8, bool) {
        let Some(length) = whole_pages(size) else {
            return (std::ptr::null_mut(), true);
        };
        let fitting = self.listed().enumerate().filter(|(_, range)| range.length >= length);
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

    pub fn put(&mut self, block: *mut u8, size: usize, keep: bool) {
        let Some(length) = whole_pages(size) else { return };
        let start = block as usize;
        match keep && self.bytes + length <= MOST_KEPT {
            true => self.add(Range { start, length }),
            false => unmap(start, length),
        }
    }

    /// Whether the block can be resized in place.
    pub fn change(&mut self, block: *mut u8, old: usize, new: usize, keep: bool) -> bool {
        let (Some(old), Some(new)) = (whole_pages(old), whole_pages(new)) else {
            return false;
        };
        if new < old {
            self.put((block as usize + new) as *mut u8, old - new, keep);
        }
        new <= old
    }

    pub fn give_back(&mut self) {
        for range in &self.free[..self.count] {
            unmap(range.start, range.length);
        }
        (self.count, self.bytes) = (0, 0);
    }

    fn listed(&self) -> impl Iterator<Item = Range> {
        self.free.iter().take(self.count).copied()
    }

    /// Merges the range with its neighbours. If the table is full, returns it to the system.
    fn add(&mut self, mut range: Range) {
        let touches = |a: &Range, b: &Range| a.start + a.length == b.start || b.start + b.length == a.start;
        loop {
            let found = self.listed().position(|near| touches(&near, &range));
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
    fn what_was_freed_serves_again_in_parts_and_joined() {
        let mut ranges = Ranges::NONE;
        let (whole, is_new) = ranges.take(5 * LARGE_PAGE - 3);
        assert!(is_new && (whole as usize).is_multiple_of(LARGE_PAGE));
        ranges.put(whole, 5 * LARGE_PAGE - 3, true);
        let (first, is_new) = ranges.take(2 * LARGE_PAGE);
        assert!(!is_new && first == whole);
        let (second, is_new) = ranges.take(2 * LARGE_PAGE + 1);
        assert!(!is_new && second as usize == whole as usize + 2 * LARGE_PAGE);
        assert_eq!((ranges.count, ranges.bytes), (0, 0));
        ranges.put(first, 2 * LARGE_PAGE, true);
        assert!(!ranges.change(second, 2 * LARGE_PAGE + 1, 4 * LARGE_PAGE, true));
        assert!(ranges.change(second, 2 * LARGE_PAGE + 1, LARGE_PAGE, true));
        assert_eq!((ranges.count, ranges.bytes), (2, 4 * LARGE_PAGE));
        ranges.put(second, LARGE_PAGE, true);
        assert_eq!((ranges.count, ranges.bytes), (1, 5 * LARGE_PAGE));
        ranges.give_back();
        assert_eq!((ranges.count, ranges.bytes), (0, 0));
    }

    #[test]
    fn not_more_than_the_bound_is_kept_and_nothing_without_a_keeper() {
        let mut ranges = Ranges::NONE;
        let blocks: Vec<*mut u8> = (0..10).map(|_| ranges.take(MOST_KEPT / 8).0).collect();
        for (i, block) in blocks.into_iter().enumerate() {
            ranges.put(block, MOST_KEPT / 8, i > 0);
            assert!(ranges.bytes <= MOST_KEPT);
        }
        assert_eq!(ranges.bytes, MOST_KEPT);
        ranges.give_back();
        // More ranges than the table holds, none adjacent to another.
        let blocks: Vec<*mut u8> = (0..3 * MOST_RANGES).map(|_| ranges.take(LARGE).0).collect();
        for block in blocks.iter().step_by(2) {
            ranges.put(*block, LARGE, true);
        }
        assert!(ranges.count <= MOST_RANGES);
        for block in blocks.iter().skip(1).step_by(2) {
            ranges.put(*block, LARGE, true);
        }
        ranges.give_back();
    }
}
