//! Memory of long messages. Theirs is taken and given back message by message, and each page of it that is touched for the first
//! time costs a fault: microseconds on a virtual machine, and a message of 100 MB has 25,000 in each of its copies. So what is large lies on
//! large pages (madvise(2), `MADV_HUGEPAGE`), and the pieces in which a message comes in lie in regions that stay when they are free.
//!
//! Everything else is the system allocator's.
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// From so many bytes on a block gets large pages.
const LARGE: usize = 4 << 20;
/// The pieces have more than half of this, and at most this (what the transport reads at once).
const PIECE: usize = 128 << 10;
/// Of pieces, and of a large page.
const REGION: usize = 2 << 20;
/// The first piece's place is the region's head.
const PIECES: u32 = (REGION / PIECE) as u32 - 1;
/// So many regions stay when they are free, until [`give_back`].
const MOST_FREE: usize = 128;

pub struct Allocator;

// SAFETY: blocks are the system allocator's or pieces of mapped regions; which of the two follows from the layout alone, so each goes
// back to where it came from.
#[expect(unsafe_code, reason = "an allocator is one")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_piece(&layout) {
            return pieces().take();
        }
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc(layout) };
        on_large_pages(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_piece(&layout) {
            return pieces().put(block);
        }
        // SAFETY: it came from there.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_piece(&layout) {
            let block = pieces().take();
            if !block.is_null() {
                // SAFETY: it has so many bytes.
                unsafe { block.write_bytes(0, layout.size()) };
            }
            return block;
        }
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc_zeroed(layout) };
        on_large_pages(block, layout.size());
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is that `size` makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_piece(&layout), is_piece(&new)) {
            (true, true) => block,
            (false, false) => {
                // SAFETY: it came from there.
                let block = unsafe { System.realloc(block, layout, size) };
                on_large_pages(block, size);
                block
            }
            _ => {
                // SAFETY: both blocks are as long as what is copied.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

fn is_piece(layout: &Layout) -> bool {
    layout.size() > PIECE / 2 && layout.size() <= PIECE && layout.align() <= PIECE
}

/// Gives free regions back to the system.
pub fn give_back() {
    pieces().shrink(0);
}

fn on_large_pages(block: *mut u8, size: usize) {
    if size < LARGE || block.is_null() {
        return;
    }
    let first = (block as usize).next_multiple_of(REGION);
    let length = ((block as usize + size) & !(REGION - 1)).saturating_sub(first);
    advise(first, length);
}

/// A system that cannot do it says so, and nothing is lost.
fn advise(address: usize, length: usize) {
    // SAFETY: the range lies within a block of ours, and what is in it stays.
    #[expect(unsafe_code, reason = "the standard library has no call for it")]
    unsafe {
        nix::libc::madvise(address as *mut nix::libc::c_void, length, nix::libc::MADV_HUGEPAGE)
    };
}

static POOL: Mutex<Pool> = Mutex::new(Pool { open: None, free: 0 });

fn pieces() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Regions that have a free piece are in a list.
struct Pool {
    open: Option<NonNull<Region>>,
    /// Of the list's regions, those without a used piece.
    free: usize,
}

/// The head of a region, in its first page.
struct Region {
    previous: Option<NonNull<Region>>,
    next: Option<NonNull<Region>>,
    /// A bit for each piece that is free.
    free: u32,
}

const ALL_FREE: u32 = (1 << PIECES) - 1;

// SAFETY: regions are touched only under the lock that the pool is in.
#[expect(unsafe_code, reason = "the pool holds pointers")]
unsafe impl Send for Pool {}

#[expect(unsafe_code, reason = "an allocator is one")]
impl Pool {
    /// A piece, or null when the system has no more memory.
    fn take(&mut self) -> *mut u8 {
        let Some(mut region) = self.open.or_else(|| self.another()) else {
            return null_mut();
        };
        // SAFETY: regions of the list are mapped, and only this pool has their heads.
        let head = unsafe { region.as_mut() };
        self.free -= usize::from(head.free == ALL_FREE);
        let index = head.free.trailing_zeros();
        head.free &= !(1 << index);
        if head.free == 0 {
            self.unlink(region);
        }
        (region.as_ptr() as usize + (index as usize + 1) * PIECE) as *mut u8
    }

    fn put(&mut self, piece: *mut u8) {
        let base = piece as usize & !(REGION - 1);
        let index = (piece as usize - base) / PIECE - 1;
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
            self.shrink(MOST_FREE);
        }
    }

    /// Maps a region, on a large page.
    fn another(&mut self) -> Option<NonNull<Region>> {
        use nix::libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap};
        // SAFETY: a new mapping; of it an aligned region stays.
        let region = unsafe {
            let found = mmap(null_mut(), 2 * REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if found == MAP_FAILED {
                return None;
            }
            let base = (found as usize).next_multiple_of(REGION);
            let before = base - found as usize;
            if before > 0 {
                munmap(found, before);
            }
            munmap((base + REGION) as *mut _, REGION - before);
            NonNull::new(base as *mut Region)?
        };
        advise(region.as_ptr() as usize, REGION);
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
        // SAFETY: as in `take`.
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
        // SAFETY: as in `take`.
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

    /// Until so many free regions are left.
    fn shrink(&mut self, most: usize) {
        let mut at = self.open;
        while let Some(region) = at
            && self.free > most
        {
            // SAFETY: as in `take`; nobody uses a piece of what is unmapped.
            unsafe {
                at = region.as_ref().next;
                if region.as_ref().free == ALL_FREE {
                    self.unlink(region);
                    self.free -= 1;
                    nix::libc::munmap(region.as_ptr().cast(), REGION);
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
    fn pieces_do_not_overlap_and_are_used_again() {
        let mut pool = pool();
        let taken: Vec<*mut u8> = (0..100).map(|_| pool.take()).collect();
        for (i, piece) in taken.iter().enumerate() {
            unsafe { piece.write_bytes(i as u8, PIECE) };
        }
        for (i, piece) in taken.iter().enumerate() {
            let found = unsafe { std::slice::from_raw_parts(*piece, PIECE) };
            assert!(found.iter().all(|byte| *byte == i as u8), "piece {i}");
        }
        let places: BTreeSet<usize> = taken.iter().map(|piece| *piece as usize).collect();
        assert_eq!(places.len(), 100);
        // Of seven regions: out of order, and all.
        for piece in taken.iter().rev().step_by(2).chain(taken.iter().step_by(2)) {
            pool.put(*piece);
        }
        assert_eq!(pool.free, 7);
        let again: BTreeSet<usize> = (0..100).map(|_| pool.take() as usize).collect();
        assert!(again.iter().all(|piece| places.contains(&(piece & !(REGION - 1) | PIECE))));
        assert_eq!(pool.free, 0);
        again.into_iter().for_each(|piece| pool.put(piece as *mut u8));
        pool.shrink(2);
        assert_eq!(pool.free, 2);
        pool.shrink(0);
        assert_eq!((pool.free, pool.open), (0, None));
    }

    #[test]
    fn blocks_of_all_sizes_keep_what_is_in_them() {
        let mut block: Vec<u8> = Vec::new();
        let mut value = 0u8;
        for size in [
            10,
            PIECE / 2,
            PIECE / 2 + 1,
            PIECE,
            PIECE + 1,
            LARGE,
            3 * LARGE,
            LARGE,
            PIECE,
            100,
            PIECE - 1,
        ] {
            let before = block.len().min(size);
            block.truncate(size);
            block.shrink_to(size);
            block.reserve_exact(size - before);
            while block.len() < size {
                block.push(value);
                value = value.wrapping_add(1);
            }
            for (i, byte) in block.iter().enumerate().take(10) {
                assert_eq!(*byte, i as u8, "{size}");
            }
        }
        assert!(vec![0u8; PIECE].iter().all(|byte| *byte == 0));
    }
}
