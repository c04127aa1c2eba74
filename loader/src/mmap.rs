//! Read-only maps of files: the only `unsafe` of this crate.
#![allow(unsafe_code, reason = "the system lets others write to a file that is mapped")]

use core::ops::Range;
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// Bytes that the system can give to a process at once, as one page, where they begin with a multiple of
/// that: sixteen times as fast as one small page after another. Where its large pages have another size, all are
/// small.
pub(crate) const BLOCK_BYTES: usize = 2 << 20;

/// A read-only shared map of the first bytes of a file. Pages of it can be exchanged for copies in
/// memory of this process and back; that changes where bytes are, not what they are.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps the first `bytes` bytes, which the file has.
    pub(crate) fn new(file: &File, bytes: usize) -> io::Result<Self> {
        // SAFETY: `MmapOptions::map` demands that the file is not modified while it is mapped.
        // - This process does not modify it: `file` is opened for reading only (open.rs), the map
        //   is read-only, and `Map` gives out shared slices alone.
        // - A file that still grows is the exception: `cmf-sources` writes pieces to it through a
        //   descriptor of its own, each before `Resident::set_arrived` lets anybody read it, and none
        //   twice.
        // - Other processes: no system can promise it. The caller of `Model::open` does, by the
        //   contract in the crate's documentation; `Backend::Pread` is there for who cannot.
        // - Where the promise is broken: header and directory are copies (source.rs), so that no
        //   checked size or index changes. Payload is read as `u8`, of which every bit pattern is
        //   valid, by code that takes no length or position from it without checking it. Pages
        //   that were cut off raise SIGBUS, which `populate` and the length checks in source.rs
        //   make rare.
        let map = unsafe { MmapOptions::new().len(bytes).map(file) }?;
        Ok(Self(map))
    }

    /// The mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Brings the pages of `range` in, so that a part of the file that is gone or cannot be read is
    /// an error here and not a signal when it is touched. Does nothing where the system cannot.
    pub(crate) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        return linux::advise(&self.0, range, linux::Advice::LinuxPopulateRead).or_else(|e| match e {
            // Before Linux 5.14 the advice is unknown.
            rustix::io::Errno::INVAL => Ok(()),
            rustix::io::Errno::FAULT => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut or cannot be read"))
            }
            e => Err(e.into()),
        });
        #[cfg(not(target_os = "linux"))]
        {
            let _ = range;
            Ok(())
        }
    }

    /// [`Map::populate`] before bytes `range` of the file, which the map is of and which still has them,
    /// are read once: where the system has all of them in its cache, reading them cannot fail, and they
    /// are brought in when they are touched, sixteen pages at a time instead of one.
    pub(crate) fn ready(&self, file: &File, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if linux::all_cached(file, &range) {
            return Ok(());
        }
        #[cfg(not(target_os = "linux"))]
        let _ = file;
        self.populate(range)
    }

    /// Makes the pages of `range` resident: [`Map::populate`], and pages around those that are missed
    /// later are brought in again.
    pub(crate) fn hold(&self, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        linux::advise(&self.0, range.clone(), linux::Advice::Normal)?;
        self.populate(range)
    }

    /// Takes the pages of `range` out of this process's memory. They are read again when they are
    /// touched. `range` begins and ends with a page, or ends with the map. Does nothing where the
    /// system cannot.
    pub(crate) fn release(&self, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            // The system maps sixteen pages around one that is missed, but none beyond the end of a
            // range with other advice: what is held next to `range` no longer brings any of it in.
            linux::advise(&self.0, range.clone(), linux::Advice::Random)?;
            linux::advise(&self.0, range, linux::Advice::LinuxDontNeed)?;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
        Ok(())
    }

    /// Leaves it to the system again which pages are resident.
    pub(crate) fn forget(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        linux::advise(&self.0, 0..self.0.len(), linux::Advice::Normal)?;
        Ok(())
    }

    /// Puts a copy in memory of this process in the place of the pages of `range`, which begins and
    /// ends with a page, or ends with the map. `fill` writes the copy: the bytes of the file.
    #[cfg(target_os = "linux")]
    pub(crate) fn own(
        &self,
        range: Range<usize>,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        linux::check(&self.0, &range)?;
        let mut copy = linux::Staging::new(&self.0, &range)?;
        fill(copy.bytes())?;
        copy.place(&self.0, range)
    }

    /// Puts the pages of the file back in the place of the copies of `range`, which are freed.
    #[cfg(target_os = "linux")]
    pub(crate) fn disown(&self, range: Range<usize>, file: &File) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        linux::check(&self.0, &range)?;
        linux::part_blocks(&self.0, &range);
        linux::map_over(&self.0, range, file)
    }

    /// How far the first byte of the map lies behind the last place where a block of [`BLOCK_BYTES`]
    /// can begin.
    pub(crate) fn block_phase(&self) -> usize {
        self.0.as_ptr().addr() % BLOCK_BYTES
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::BLOCK_BYTES;
    use core::ffi::c_void;
    use core::ops::Range;
    use core::ptr;
    use memmap2::Mmap;
    pub(super) use rustix::mm::Advice;
    use rustix::mm::{self, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// That `range` is one of the map and begins with a page.
    pub(super) fn check(map: &Mmap, range: &Range<usize>) -> io::Result<()> {
        let page = rustix::param::page_size();
        let whole = range.end.is_multiple_of(page) || range.end == map.len();
        match range.start < range.end && range.end <= map.len() && range.start.is_multiple_of(page) && whole {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "no range of whole pages")),
        }
    }

    /// Advice about the pages of `range`: `Normal`, `Random`, `LinuxPopulateRead`, `LinuxDontNeed` or
    /// `LinuxCold`.
    pub(super) fn advise(map: &Mmap, range: Range<usize>, advice: Advice) -> rustix::io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let page = rustix::param::page_size();
        let start = range.start - range.start % page;
        if range.end > map.len() {
            return Err(rustix::io::Errno::INVAL);
        }
        // SAFETY: the range lies within the map, which lives as long as `map`, and begins with a
        // page, since the map does. `DONTNEED` is dangerous where it changes what is read: on a map of
        // a file that was never written to, the next access gives the file's bytes, and those are
        // what was there. Copies that `own` made are never under it: `disown` replaces them. The
        // other advice changes nothing that a program can read.
        unsafe { mm::madvise(map.as_ptr().add(start).cast_mut().cast::<c_void>(), range.end - start, advice) }
    }

    /// Whether all pages of bytes `range` of `file` are in the system's cache. No, too, where the system
    /// does not say: before Linux 6.5, or of a file that is not the user's own.
    pub(super) fn all_cached(file: &File, range: &Range<usize>) -> bool {
        /// `cachestat`, which has this number on every architecture.
        const CACHESTAT: libc::c_long = 451;
        let bytes = [range.start as u64, range.len() as u64];
        // Pages in the cache, dirty ones, those being written, evicted ones, recently evicted ones.
        let mut counts = [0_u64; 5];
        // SAFETY: the call reads the two numbers of `bytes` (`struct cachestat_range`) and writes five to
        // `counts` (`struct cachestat`), which live until it returns; it keeps neither.
        let result =
            unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), bytes.as_ptr(), counts.as_mut_ptr(), 0) };
        let page = rustix::param::page_size();
        let pages = range.end.div_ceil(page) - range.start / page;
        // A length of 0 is to the end of the file.
        result == 0 && !range.is_empty() && counts[0] >= pages as u64
    }

    /// Anonymous memory that is going to replace a part of a map.
    pub(super) struct Staging {
        start: *mut c_void,
        bytes: usize,
    }

    impl Staging {
        /// Memory for `range` of `map`: blocks lie in it as they lie there, so that they move whole.
        pub(super) fn new(map: &Mmap, range: &Range<usize>) -> io::Result<Self> {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let page = rustix::param::page_size();
            let pages_bytes = range.len().checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
            let room = pages_bytes.checked_add(BLOCK_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
            // SAFETY: without MAP_FIXED the system chooses a place where nothing is.
            let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), room, access, flags) }?;
            let target = map.as_ptr().addr().wrapping_add(range.start) % BLOCK_BYTES;
            let before = target.wrapping_sub(start.addr()) % BLOCK_BYTES;
            let staging = Self { start: start.wrapping_byte_add(before), bytes: range.len() };
            // SAFETY: both ends were mapped above, begin and end with a page (`before` is a difference of
            // two that do), and are neither in `staging` nor referred to by anything else.
            unsafe {
                if before > 0 {
                    mm::munmap(start, before)?;
                }
                mm::munmap(staging.start.wrapping_byte_add(pages_bytes), BLOCK_BYTES - before)?;
            }
            // A system without large pages refuses, and gives small ones.
            let _ = staging.advise(Advice::LinuxHugepage);
            Ok(staging)
        }

        fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
            // SAFETY: the mapping is this value's own; advice about the size of pages changes nothing that
            // a program can read.
            unsafe { mm::madvise(self.start, self.bytes, advice) }
        }

        pub(super) fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: `start` is a mapping of `bytes` bytes (more in its last page), readable,
            // writable and zero, that nothing else refers to; the slice borrows `self`, which unmaps it.
            unsafe { core::slice::from_raw_parts_mut(self.start.cast::<u8>(), self.bytes) }
        }

        /// Moves the memory to where `range` of `map` is.
        pub(super) fn place(self, map: &Mmap, range: Range<usize>) -> io::Result<()> {
            if range.len() != self.bytes {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // From now on the system leaves pages as they are: no block is made of small ones, for which it
            // would take memory that nobody counts.
            let _ = self.advise(Advice::LinuxNoHugepage);
            // SAFETY: the mapping is this value's own, and becomes read-only, as the map is.
            unsafe { mm::mprotect(self.start, self.bytes, MprotectFlags::READ) }?;
            // SAFETY: the target is within `map` (checked by `own`), and begins and ends with its
            // pages. Whoever reads it meanwhile is stopped by the system until the move is done, and
            // then finds the same bytes: those of the file. What was mapped there is
            // unmapped, and `map` unmaps what takes its place.
            unsafe {
                let target = map.as_ptr().add(range.start).cast_mut().cast::<c_void>();
                mm::mremap_fixed(self.start, self.bytes, self.bytes, MremapFlags::MAYMOVE, target)
            }?;
            core::mem::forget(self);
            Ok(())
        }
    }

    impl Drop for Staging {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own, and nothing borrows it any more.
            let _ = unsafe { mm::munmap(self.start, self.bytes) };
        }
    }

    /// Makes small pages of the blocks that the ends of `range` lie in. A block of which a part is unmapped
    /// would stay in memory whole until the system is short of it.
    pub(super) fn part_blocks(map: &Mmap, range: &Range<usize>) {
        let page = rustix::param::page_size();
        let whole = |place: usize| map.as_ptr().addr().wrapping_add(place).is_multiple_of(BLOCK_BYTES);
        let last = range.end.saturating_sub(1) / page * page;
        for (end, inside) in [(range.start, range.start), (range.end, last)] {
            if !whole(end) {
                // The system parts a block before it gives advice about less than all of it. Where it cannot,
                // memory comes back later; the advice itself is that the page, which goes, is not used.
                let _ = advise(map, inside..range.end.min(inside.saturating_add(page)), Advice::LinuxCold);
            }
        }
    }

    /// Maps `file` over `range` of the map.
    pub(super) fn map_over(map: &Mmap, range: Range<usize>, file: &File) -> io::Result<()> {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the target is within `map` (checked by `disown`), begins and ends with its pages, and
        // gets the bytes that it has as long as the file is not written to, which is the promise that
        // `Map::new` rests on. `map` unmaps what takes its place.
        unsafe {
            let target = map.as_ptr().add(range.start).cast_mut().cast::<c_void>();
            mm::mmap(target, range.len(), ProtFlags::READ, flags, file, range.start as u64)
        }?;
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::positional::read_exact_at;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    /// A number of `/proc/vmstat`.
    fn events(name: &str) -> Result<u64, Box<dyn std::error::Error>> {
        let all = std::fs::read_to_string("/proc/vmstat")?;
        let found = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(found.map_or(Ok(0), str::parse)?)
    }

    #[test]
    fn parts_of_blocks_go_back_to_the_system() -> Outcome {
        let bytes: Vec<u8> = (0..8 * BLOCK_BYTES + 5000).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &bytes)?;
        let file = File::open(file.path())?;
        let map = Map::new(&file, bytes.len())?;
        let given = events("thp_fault_alloc")?;
        map.own(0..bytes.len(), |out| read_exact_at(&file, out, 0))?;
        let given = events("thp_fault_alloc")? - given;
        assert!(map.bytes() == bytes);
        let parted = events("thp_split_page")?;
        // A page in the middle of each block.
        let first = (BLOCK_BYTES - map.block_phase()) % BLOCK_BYTES;
        let middles = (first..7 * BLOCK_BYTES).step_by(BLOCK_BYTES).map(|start| start + BLOCK_BYTES / 2);
        for start in middles.clone() {
            map.disown(start..start + 65536, &file)?;
        }
        let parted = events("thp_split_page")? - parted;
        assert!(map.bytes() == bytes);
        match given {
            0 => println!("SKIPPED: the system gives no large pages"),
            // Others of this system may split some too.
            _ => assert!(parted >= middles.count() as u64, "{parted} blocks of {given} were parted"),
        }
        Ok(())
    }
}
