//! Receive buffers of messages: blocks of one size, in regions of one huge page.
use super::{HUGE_PAGE_BYTES, map, unmap};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pieces are larger than half of this, and at most this size (the transport's read size).
pub(super) const PIECE_BYTES: usize = 128 << 10;
/// The slot of the first piece holds the region's head.
const PIECES_PER_REGION: u32 = (HUGE_PAGE_BYTES / PIECE_BYTES) as u32 - 1;
/// The number of free regions to keep if a thread returns them later,
const MAX_CACHED_REGIONS: usize = 128;
/// ... and otherwise.
const MAX_UNCACHED_REGIONS: usize = 2;

static POOL: Mutex<Pool> = Mutex::new(Pool { open: None, free: 0 });

pub(super) fn pieces() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The list of regions that have a free piece.
pub(super) struct Pool {
    open: Option<NonNull<Region>>,
    /// The number of regions in the list without a used piece.
    free: usize,
}

/// The head of a region, in its first page.
struct Region {
    previous: Option<NonNull<Region>>,
    next: Option<NonNull<Region>>,
    /// A bit for each free piece.
    free: u32,
}

const ALL_FREE: u32 = (1 << PIECES_PER_REGION) - 1;

// SAFETY: regions are accessed only under the lock that holds the pool.
#[expect(unsafe_code, reason = "the pool holds pointers")]
unsafe impl Send for Pool {}

#[expect(unsafe_code, reason = "an allocator is one")]
impl Pool {
    /// Allocates a piece; null if the system has no more memory.
    pub(super) fn allocate(&mut self) -> *mut u8 {
        let Some(mut region) = self.open.or_else(|| self.add_region()) else {
            return null_mut();
        };
        // SAFETY: the regions of the list are mapped, and only this pool refers to their heads.
        let head = unsafe { region.as_mut() };
        self.free -= usize::from(head.free == ALL_FREE);
        let index = head.free.trailing_zeros();
        head.free &= !(1 << index);
        if head.free == 0 {
            self.unlink(region);
        }
        (region.as_ptr() as usize + (index as usize + 1) * PIECE_BYTES) as *mut u8
    }

    pub(super) fn free(&mut self, piece: *mut u8, cache: bool) {
        let base = piece as usize & !(HUGE_PAGE_BYTES - 1);
        let index = (piece as usize - base) / PIECE_BYTES - 1;
        let Some(mut region) = NonNull::new(base as *mut Region) else {
            return;
        };
        // SAFETY: a region with a used piece is mapped.
        let head = unsafe { region.as_mut() };
        if head.free == 0 {
            self.link(region);
        }
        head.free |= 1 << index;
        if head.free == ALL_FREE {
            self.free += 1;
            self.shrink(if cache { MAX_CACHED_REGIONS } else { MAX_UNCACHED_REGIONS });
        }
    }

    /// Adds a region.
    fn add_region(&mut self) -> Option<NonNull<Region>> {
        let region = NonNull::new(map(HUGE_PAGE_BYTES) as *mut Region)?;
        let head = Region {
            previous: None,
            next: None,
            free: ALL_FREE,
        };
        // SAFETY: the region is new, and longer than its head.
        unsafe { region.write(head) };
        self.free += 1;
        self.link(region);
        Some(region)
    }

    fn link(&mut self, mut region: NonNull<Region>) {
        // SAFETY: as in `allocate`.
        unsafe {
            region.as_mut().previous = None;
            region.as_mut().next = self.open;
            if let Some(mut next) = self.open {
                next.as_mut().previous = Some(region);
            }
        }
        self.open = Some(region);
    }

    fn unlink(&mut self, region: NonNull<Region>) {
        // SAFETY: as in `allocate`.
        unsafe {
            let (previous, next) = (region.as_ref().previous, region.as_ref().next);
            match previous {
                Some(mut previous) => previous.as_mut().next = next,
                None => self.open = next,
            }
            if let Some(mut next) = next {
                next.as_mut().previous = previous;
            }
        }
    }

    /// Frees regions until this many free ones are left.
    pub(super) fn shrink(&mut self, max_free: usize) {
        let mut at = self.open;
        while let Some(region) = at
            && self.free > max_free
        {
            // SAFETY: as in `allocate`; no piece of an unmapped region is in use.
            unsafe {
                at = region.as_ref().next;
                if region.as_ref().free == ALL_FREE {
                    self.unlink(region);
                    self.free -= 1;
                    unmap(region.as_ptr() as usize, HUGE_PAGE_BYTES);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn pool() -> Pool {
        Pool { open: None, free: 0 }
    }

    #[test]
    #[expect(unsafe_code, reason = "pieces are written to")]
    fn pieces_do_not_overlap_and_are_reused() {
        let mut pool = pool();
        let allocations: Vec<*mut u8> = (0..100).map(|_| pool.allocate()).collect();
        for (i, piece) in allocations.iter().enumerate() {
            unsafe { piece.write_bytes(i as u8, PIECE_BYTES) };
        }
        for (i, piece) in allocations.iter().enumerate() {
            let found = unsafe { std::slice::from_raw_parts(*piece, PIECE_BYTES) };
            assert!(found.iter().all(|byte| *byte == i as u8), "piece {i}");
        }
        let places: BTreeSet<usize> = allocations.iter().map(|piece| *piece as usize).collect();
        assert_eq!(places.len(), 100);
        // Pieces of seven regions: free some out of order, then all.
        for piece in allocations.iter().rev().step_by(2).chain(allocations.iter().step_by(2)) {
            pool.free(*piece, true);
        }
        assert_eq!(pool.free, 7);
        let again: BTreeSet<usize> = (0..100).map(|_| pool.allocate() as usize).collect();
        assert!(
            again
                .iter()
                .all(|piece| places.contains(&(piece & !(HUGE_PAGE_BYTES - 1) | PIECE_BYTES)))
        );
        assert_eq!(pool.free, 0);
        again.into_iter().for_each(|piece| pool.free(piece as *mut u8, true));
        pool.shrink(2);
        assert_eq!(pool.free, 2);
        pool.shrink(0);
        assert_eq!((pool.free, pool.open), (0, None));
    }
}
