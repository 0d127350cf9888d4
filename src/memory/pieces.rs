//! Receive buffers of messages: blocks of one size, in regions of one huge page.
use super::{HUGE_PAGE_BYTES, map, unmap};
use std::ptr::null_mut;
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

/// The address of a region that this pool has mapped.
type Region = usize;

/// The list of regions that have a free piece.
pub(super) struct Pool {
    open: Option<Region>,
    /// The number of regions in the list without a used piece.
    free: usize,
}

/// The head of a region, in its first page.
struct Head {
    previous: Option<Region>,
    next: Option<Region>,
    /// A bit for each free piece.
    free: u32,
}

const ALL_FREE: u32 = (1 << PIECES_PER_REGION) - 1;

impl Pool {
    /// Allocates a piece; null if the system has no more memory.
    pub(super) fn allocate(&mut self) -> *mut u8 {
        let Some(region) = self.open.or_else(|| self.add_region()) else {
            return null_mut();
        };
        let head = self.head(region);
        let was_free = head.free == ALL_FREE;
        let index = head.free.trailing_zeros() as usize;
        head.free &= !(1 << index);
        if head.free == 0 {
            self.unlink(region);
        }
        self.free -= usize::from(was_free);
        (region + (index + 1) * PIECE_BYTES) as *mut u8
    }

    pub(super) fn free(&mut self, piece: *mut u8, cache: bool) {
        let region = piece as usize & !(HUGE_PAGE_BYTES - 1);
        let index = (piece as usize - region) / PIECE_BYTES - 1;
        if self.head(region).free == 0 {
            self.link(region);
        }
        let head = self.head(region);
        head.free |= 1 << index;
        if head.free == ALL_FREE {
            self.free += 1;
            self.shrink(if cache { MAX_CACHED_REGIONS } else { MAX_UNCACHED_REGIONS });
        }
    }

    /// The head of a region that is in the list or has a used piece.
    fn head(&mut self, region: Region) -> &mut Head {
        // SAFETY: such a region is mapped, is longer than its head, and zeros are a valid head; only this
        // pool, which the result borrows, refers to heads.
        #[expect(unsafe_code, reason = "an allocator's own data is in what it maps")]
        unsafe {
            &mut *(region as *mut Head)
        }
    }

    fn add_region(&mut self) -> Option<Region> {
        let region = Some(map(HUGE_PAGE_BYTES) as Region).filter(|region| *region != 0)?;
        *self.head(region) = Head {
            previous: None,
            next: None,
            free: ALL_FREE,
        };
        self.free += 1;
        self.link(region);
        Some(region)
    }

    fn link(&mut self, region: Region) {
        let next = self.open.replace(region);
        let head = self.head(region);
        (head.previous, head.next) = (None, next);
        if let Some(next) = next {
            self.head(next).previous = Some(region);
        }
    }

    fn unlink(&mut self, region: Region) {
        let Head { previous, next, .. } = *self.head(region);
        match previous {
            Some(previous) => self.head(previous).next = next,
            None => self.open = next,
        }
        if let Some(next) = next {
            self.head(next).previous = previous;
        }
    }

    /// Frees regions until this many free ones are left.
    pub(super) fn shrink(&mut self, max_free: usize) {
        let mut at = self.open;
        while let Some(region) = at
            && self.free > max_free
        {
            let head = self.head(region);
            at = head.next;
            if head.free == ALL_FREE {
                self.unlink(region);
                self.free -= 1;
                unmap(region, HUGE_PAGE_BYTES);
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
