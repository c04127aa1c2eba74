//! Lies in a GGUF file must not cost memory. Alone in its process, so that the peak is its own.

mod gguf_files;

use cmf_converters::gguf::{Gguf, Limits};
use gguf_files::Handmade;

/// Peak address space of this process in KiB; none where the system has no `/proc`.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn no_field_makes_the_reader_allocate_more_than_the_file() {
    let file = Handmade::default().bytes();
    let read = |bytes: &[u8]| Gguf::read(bytes, &Limits::default()).map(drop);
    assert!(read(&file).is_ok());
    let Some(before) = peak_kib() else {
        println!("SKIPPED: no /proc/self/status");
        return;
    };
    for at in 0..file.len() - 8 {
        for word in [1 << 20, 1 << 28, 1 << 30, 1 << 33, 1 << 40, 1 << 60, u64::MAX] {
            let mut bytes = file.clone();
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            // Refused or not, only what it costs matters here.
            let _ = read(&bytes);
        }
    }
    let grown = peak_kib().unwrap_or(0).saturating_sub(before);
    assert!(grown < 1024, "address space grew by {grown} KiB over a file of {} bytes", file.len());
}
