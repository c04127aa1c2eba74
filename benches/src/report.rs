//! Tables as text.

use crate::row::{Measured, Suite};
use std::io::{Result, Write};

/// Processor, number of threads and load of the machine.
pub(crate) fn machine() -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        line.split_once(':').map(|(_, name)| name.trim().to_owned())
    });
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(1).collect();
    format!(
        "{}, {} {}, {} threads, load {}",
        processor.as_deref().unwrap_or("unknown processor"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        std::thread::available_parallelism().map_or(0, |n| n.get()),
        load.first().copied().unwrap_or("unknown"),
    )
}

/// Title of a table and its columns.
pub(crate) fn head(out: &mut impl Write, suite: &Suite) -> Result<()> {
    writeln!(out, "\n{}", suite.title)?;
    writeln!(
        out,
        "{:<30} {:>12} {:>12}  {:<12} {:>7} {:>7}  goal",
        "row", "ours", "peer", "", "ratio", "varies"
    )
}

/// One row.
pub(crate) fn line(out: &mut impl Write, row: &Measured) -> Result<()> {
    let show = |seconds: f64| match row.bytes {
        0 => duration(seconds),
        bytes => speed(bytes as f64 / seconds),
    };
    let goals: Vec<_> =
        row.goals.iter().map(|g| format!("{}: {}", g.goal, if g.met { "met" } else { "MISSED" })).collect();
    let remarks: Vec<_> = goals.into_iter().chain(Some(row.note.clone()).filter(|n| !n.is_empty())).collect();
    let line = format!(
        "{:<30} {:>12} {:>12}  {:<12} {:>7.2} {:>6.0}%  {}",
        row.name,
        show(row.seconds),
        show(row.peer_seconds),
        row.peer,
        row.ratio,
        row.variation() * 100.0,
        remarks.join("; "),
    );
    writeln!(out, "{}", line.trim_end())?;
    out.flush()
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

fn speed(bytes_per_second: f64) -> String {
    match bytes_per_second {
        s if s >= 1e9 => format!("{:.2} GB/s", s / 1e9),
        s => format!("{:.1} MB/s", s / 1e6),
    }
}
