//! Serves one file over a link of a given speed, which all connections share: for measuring when a
//! first token comes.
//!
//! `cargo run --release -p cmf-sources --example link -- model.cmf 50` says the address of `model.cmf` and
//! gives at most 50 Mbit/s of bodies. Ranges, one a request; no encryption; this machine alone.

use std::io::{BufRead, BufReader, Error, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are sent in one go.
const PART_BYTES: usize = 8 << 10;

/// What the system may oversleep.
const LATE: Duration = Duration::from_millis(5);

struct Link {
    file: Vec<u8>,
    bytes_per_second: f64,
    /// When the bytes that were sent have left the link.
    free: Mutex<Instant>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, megabits] = arguments.as_slice() else {
        return Err(Error::other("expected a file and a speed in Mbit/s"));
    };
    let megabits: f64 = megabits.parse().map_err(Error::other)?;
    let link = Link {
        file: std::fs::read(path)?,
        bytes_per_second: megabits * 1e6 / 8.0,
        free: Mutex::new(Instant::now()),
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}/model.cmf", listener.local_addr()?);
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            let link = &link;
            // A client that closes ends its own thread only.
            scope.spawn(move || while let Ok(true) = link.answer(&stream) {});
        }
    });
    Ok(())
}

impl Link {
    /// Answers one request; whether the connection goes on.
    fn answer(&self, stream: &TcpStream) -> Result<bool> {
        let file_bytes = self.file.len();
        let mut lines = BufReader::new(stream).lines();
        let mut asked = None;
        loop {
            let Some(line) = lines.next().transpose()? else { return Ok(false) };
            let line = line.to_ascii_lowercase();
            if let Some((start, last)) =
                line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-'))
            {
                let last = last.parse().unwrap_or(usize::MAX);
                asked = Some(start.parse().unwrap_or(0)..file_bytes.min(last.saturating_add(1)));
            }
            if line.is_empty() {
                break;
            }
        }
        let mut out = stream;
        let (status, range) = match &asked {
            Some(range) => ("206 Partial Content", range.clone()),
            None => ("200 OK", 0..file_bytes),
        };
        let Range { start, end } = range;
        if start >= end {
            write!(out, "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n")?;
            return Ok(true);
        }
        write!(
            out,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{}\r\netag: \"one\"\r\n\r\n",
            end - start,
            end - 1,
            file_bytes
        )?;
        for part in self.file.get(start..end).unwrap_or(&[]).chunks(PART_BYTES) {
            self.wait(part.len());
            out.write_all(part)?;
        }
        Ok(true)
    }

    /// Waits until the link has room for `bytes` more.
    fn wait(&self, bytes: usize) {
        let taken = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            // Who was woken late catches up.
            let late = Instant::now().checked_sub(LATE).unwrap_or(*free);
            *free = (*free).max(late) + taken;
            *free
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}
