//! Memory of large messages. It is allocated and freed for each message, and the first access to
//! each page costs a page fault and clears the page: microseconds on a virtual machine, and each
//! copy of a message of 100 MB has 25,000 pages. Therefore large blocks are on huge pages
//! (madvise(2), `MADV_HUGEPAGE`), and if a thread runs [`release_unused`], freed blocks stay for the
//! next message.
//!
//! Modules: [`Allocator`], [`pieces`] (receive buffers), [`ranges`] (large blocks), [`release_unused`]; [`keep_freed_blocks`] is for messages between
//! small and large.
//! Everything else is the system allocator's.
mod pieces;
mod ranges;
mod release;

pub(crate) use release::{keep_freed_blocks, release_unused};

use pieces::{PIECE_BYTES, pieces};
use ranges::{MIN_LARGE_BYTES, ranges};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// The size of a region of pieces and of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// Whether a thread returns cached memory to the system.
static CACHING: AtomicBool = AtomicBool::new(false);

fn is_caching() -> bool {
    CACHING.load(Ordering::Relaxed)
}

pub(crate) struct Allocator;

#[derive(PartialEq)]
enum BlockKind {
    Small,
    Piece,
    Large,
}

fn kind(layout: &Layout) -> BlockKind {
    match layout.size() {
        _ if layout.align() > PAGE_BYTES => BlockKind::Small,
        size if size > PIECE_BYTES / 2 && size <= PIECE_BYTES => BlockKind::Piece,
        size if size >= MIN_LARGE_BYTES => BlockKind::Large,
        _ => BlockKind::Small,
    }
}

// SAFETY: the owner of a block follows from its layout alone, so each block is freed by the
// allocator that returned it. The callers of all functions guarantee valid layouts.
#[expect(unsafe_code, reason = "an allocator is one")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocate(layout, false)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocate(layout, true)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match kind(&layout) {
            // SAFETY: the block was allocated by this pool.
            BlockKind::Small => unsafe { System.dealloc(block, layout) },
            BlockKind::Piece => pieces().free(block, is_caching()),
            BlockKind::Large => ranges().free(block, layout.size(), is_caching()),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `size` makes a valid layout, and that this allocator returned
        // the block; both blocks are at least as long as the copied part.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            match (kind(&layout), kind(&new)) {
                (BlockKind::Small, BlockKind::Small) => return System.realloc(block, layout, size),
                (BlockKind::Piece, BlockKind::Piece) => return block,
                (BlockKind::Large, BlockKind::Large) if ranges().resize(block, layout.size(), size, is_caching()) => return block,
                _ => {}
            }
            let moved = self.alloc(new);
            if moved.is_null() {
                return null_mut();
            }
            moved.copy_from_nonoverlapping(block, layout.size().min(size));
            self.dealloc(block, layout);
            moved
        }
    }
}

/// Called for a layout that is not empty.
#[inline]
fn allocate(layout: Layout, zeroed: bool) -> *mut u8 {
    // SAFETY: the layout is not empty, and a block is at least as long as its layout.
    #[expect(unsafe_code, reason = "an allocator is one")]
    unsafe {
        let (block, is_zeroed) = match kind(&layout) {
            BlockKind::Small if zeroed => return System.alloc_zeroed(layout),
            BlockKind::Small => return System.alloc(layout),
            BlockKind::Piece => (pieces().allocate(), false),
            BlockKind::Large => ranges().allocate(layout.size()),
        };
        if zeroed && !is_zeroed && !block.is_null() {
            block.write_bytes(0, layout.size());
        }
        block
    }
}

/// Maps new memory on huge pages, aligned to [`HUGE_PAGE_BYTES`], of which `length` is a multiple; null
/// if there is none.
#[expect(unsafe_code, reason = "the standard library maps nothing")]
fn map(length: usize) -> *mut u8 {
    use nix::libc::{MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap};
    let Some(whole) = length.checked_add(HUGE_PAGE_BYTES) else {
        return null_mut();
    };
    // SAFETY: a new mapping, of which an aligned range remains. On a system without huge pages
    // madvise fails harmlessly.
    unsafe {
        let found = mmap(null_mut(), whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if found == MAP_FAILED {
            return null_mut();
        }
        let first = found as usize;
        let start = first.next_multiple_of(HUGE_PAGE_BYTES);
        unmap(first, start - first);
        unmap(start + length, HUGE_PAGE_BYTES - (start - first));
        madvise(start as *mut _, length, MADV_HUGEPAGE);
        start as *mut u8
    }
}

fn unmap(start: usize, length: usize) {
    if length > 0 {
        // SAFETY: the caller's range was mapped by `map` and is no longer used.
        #[expect(unsafe_code, reason = "the standard library maps nothing")]
        unsafe {
            nix::libc::munmap(start as *mut _, length)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_all_sizes_keep_their_content() {
        let mut block: Vec<u8> = Vec::new();
        let sizes = [
            10,
            PIECE_BYTES / 2,
            PIECE_BYTES / 2 + 1,
            PIECE_BYTES,
            PIECE_BYTES + 1,
            MIN_LARGE_BYTES,
            3 * MIN_LARGE_BYTES + 5,
            MIN_LARGE_BYTES + 1,
            PIECE_BYTES,
            100,
            PIECE_BYTES - 1,
            9,
        ];
        for size in sizes {
            let before = block.len();
            block.truncate(size);
            block.shrink_to(size);
            block.reserve_exact(size - before.min(size));
            block.extend((block.len()..size).map(|i| (i % 251) as u8));
            assert!(block.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8), "{size}");
        }
    }

    #[test]
    fn zeroed_allocations_are_zeroed() {
        for size in [PIECE_BYTES, MIN_LARGE_BYTES, MIN_LARGE_BYTES + 77] {
            for _ in 0..3 {
                let mut block = vec![0u8; size];
                assert!(block.iter().all(|byte| *byte == 0));
                block.fill(7);
            }
        }
    }
}
