//! An HTTP server on the loopback that does wrong on purpose.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A header that object stores send.
const MODIFIED: &str = "last-modified: Tue, 24 Nov 2026 12:00:00 GMT";

/// What the server does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Good,
    /// Status and nothing else.
    Status(u16),
    /// The whole file, whatever is asked for.
    Whole,
    /// Another range than the one that was asked for, and says so.
    OtherRange,
    /// Other bytes than those of the file.
    Corrupt,
    /// Other bytes, from this place of the file on.
    CorruptFrom(u64),
    /// Closes after so many bytes of the body.
    Cut(usize),
    /// Resets the connection after so many bytes of the body.
    Reset(usize),
    /// Sends so many bytes of the body and then nothing.
    Stall(usize),
    /// So many bytes every ten milliseconds.
    Slow(usize),
    /// Says no length and no type of tag: a bare server.
    Bare,
    /// Says no tag and no time of change.
    NoTag,
    /// A part of the file that it does not name.
    Unnamed,
}

/// Chooses the answer to the request that is the first argument's.
pub(crate) type Choose = Box<dyn Fn(usize, &Range<u64>) -> Answer + Send + Sync>;

struct State {
    file: Mutex<(Arc<Vec<u8>>, String)>,
    choose: Choose,
    requests: AtomicUsize,
    sent: AtomicU64,
    /// The last request as it came: its line and its headers.
    last: Mutex<String>,
}

pub(crate) struct Server {
    state: Arc<State>,
    pub(crate) url: String,
}

impl Server {
    pub(crate) fn new(
        file: Vec<u8>,
        choose: impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/model.cmf", listener.local_addr()?);
        let state = Arc::new(State {
            file: Mutex::new((Arc::new(file), "\"first\"".into())),
            choose: Box::new(choose),
            requests: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            last: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || while let Ok(true) = serve(&state, &stream) {});
            }
        });
        Ok(Self { state, url })
    }

    /// Puts another file in the place of the one that is there.
    pub(crate) fn replace(&self, file: Vec<u8>) {
        *self.state.file.lock().unwrap_or_else(PoisonError::into_inner) =
            (Arc::new(file), "\"second\"".into());
    }

    /// Bytes of bodies that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// Its address without a path.
    pub(crate) fn host(&self) -> &str {
        self.url.trim_end_matches("/model.cmf")
    }

    /// The last request as it came: its line and its headers.
    pub(crate) fn last(&self) -> String {
        self.state.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }
}

/// Answers one request; whether the connection goes on.
fn serve(state: &State, stream: &TcpStream) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut asked, mut head) = (String::new(), None, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        head += &line;
        let lower = line.trim().to_ascii_lowercase();
        if let Some(range) = lower.strip_prefix("range: bytes=") {
            let (start, last) = range.split_once('-').unwrap_or(("0", "0"));
            asked = Some((start.parse().unwrap_or(0), last.parse::<u64>().unwrap_or(0) + 1));
        }
        if lower.is_empty() {
            break;
        }
    }
    *state.last.lock().unwrap_or_else(PoisonError::into_inner) = head;
    let (file, tag) = state.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let length = file.len() as u64;
    let (start, end) = asked.unwrap_or((0, length));
    let range = start.min(length)..end.min(length);
    let number = state.requests.fetch_add(1, Ordering::Relaxed);
    let answer = (state.choose)(number, &range);
    let mut out = stream;
    if let Answer::Status(status) = answer {
        write!(out, "HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(true);
    }
    let sent = match answer {
        Answer::Whole | Answer::Bare => 0..length,
        Answer::OtherRange => range.start.saturating_sub(1)..range.end.saturating_sub(1),
        _ => range,
    };
    let mut body = file[sent.start as usize..sent.end as usize].to_vec();
    match answer {
        Answer::Corrupt => body.iter_mut().for_each(|byte| *byte ^= 1),
        Answer::CorruptFrom(from) => {
            body.iter_mut().zip(sent.clone()).filter(|(_, at)| *at >= from).for_each(|(byte, _)| *byte ^= 1);
        }
        _ => {}
    }
    match answer {
        Answer::Bare => write!(out, "HTTP/1.0 200 OK\r\n\r\n")?,
        Answer::Unnamed => {
            write!(
                out,
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\netag: {tag}\r\n\r\n",
                body.len()
            )?;
        }
        Answer::NoTag => write!(
            out,
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {}-{}/{length}\r\n\r\n",
            body.len(),
            sent.start,
            sent.end.saturating_sub(1),
        )?,
        Answer::Whole => write!(out, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\netag: {tag}\r\n\r\n")?,
        _ => write!(
            out,
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {}-{}/{length}\r\netag: {tag}\r\n{MODIFIED}\r\n\r\n",
            body.len(),
            sent.start,
            sent.end.saturating_sub(1),
        )?,
    }
    let send = |mut out: &TcpStream, part: &[u8]| {
        state.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        out.write_all(part)
    };
    match answer {
        Answer::Cut(bytes) => {
            send(out, &body[..bytes.min(body.len())])?;
            return Ok(false);
        }
        Answer::Reset(bytes) => {
            send(out, &body[..bytes.min(body.len())])?;
            // Closing with unread input resets.
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        Answer::Stall(bytes) => {
            send(out, &body[..bytes.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(5));
            return Ok(false);
        }
        Answer::Slow(bytes) => {
            for part in body.chunks(bytes.max(1)) {
                send(out, part)?;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Answer::Bare => {
            send(out, &body)?;
            return Ok(false);
        }
        _ => send(out, &body)?,
    }
    Ok(true)
}
