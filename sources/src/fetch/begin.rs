//! What comes before there is an archive, and what goes wrong with a request.

use super::FetchOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::remote::{Body, Failure, Remote};
use cmf_format::Archive;
use core::cell::Cell;
use core::ops::Range;
use core::time::Duration;
use std::io::Read;

/// What is asked for first: header and directory of a small model.
const FIRST_BYTES: u64 = 64 * 1024;
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a request did not give all that it was for.
pub(super) enum Trouble {
    Again(String, Option<Duration>),
    /// As [`Failure::Absent`].
    Absent(String),
    Ends(Error),
}

impl Trouble {
    pub(super) fn of(remote: &dyn Remote, failure: Failure) -> Self {
        match failure {
            Failure::Temporary(problem, pause) => Trouble::Again(problem, pause),
            Failure::Absent(problem) => Trouble::Absent(problem),
            Failure::Permanent(problem) => {
                Trouble::Ends(Error::new(ErrorKind::Refused, remote.name(), problem))
            }
        }
    }

    /// What went wrong, and the pause that was asked for.
    pub(super) fn problem(self) -> (String, Option<Duration>) {
        match self {
            Trouble::Again(problem, pause) => (problem, pause),
            Trouble::Absent(problem) => (problem, None),
            Trouble::Ends(error) => (error.to_string(), None),
        }
    }
}

/// Header and directory.
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    pub(super) file_bytes: u64,
    pub(super) validator: Option<String>,
}

/// What comes before there is an archive.
pub(super) struct Begin<'b> {
    remote: &'b dyn Remote,
    options: &'b FetchOptions,
    /// Whether somebody has answered.
    answered: Cell<bool>,
}

impl<'b> Begin<'b> {
    pub(super) fn new(remote: &'b dyn Remote, options: &'b FetchOptions) -> Self {
        Self { remote, options, answered: Cell::new(false) }
    }

    fn get(&self, range: Range<u64>) -> core::result::Result<Body, Trouble> {
        let result = self.remote.get(range);
        if !matches!(result, Err(Failure::Absent(_))) {
            self.answered.set(true);
        }
        result.map_err(|failure| Trouble::of(self.remote, failure))
    }

    /// Gets header and directory, which have the stated hash.
    pub(super) fn head(&self) -> Result<Head> {
        let format = |e| Error::new(ErrorKind::Format, self.remote.name(), e);
        let (mut bytes, file_bytes, validator) = self.retry(&|| {
            let mut body = self.get(0..FIRST_BYTES)?;
            if body.start != 0 {
                return Err(Trouble::Again("does not begin at the beginning".into(), None));
            }
            let mut bytes = Vec::new();
            let most = body.file_bytes.unwrap_or(FIRST_BYTES).min(FIRST_BYTES);
            (&mut body.reader)
                .take(most)
                .read_to_end(&mut bytes)
                .map_err(|e| Trouble::Again(e.to_string(), None))?;
            if (bytes.len() as u64) < most && body.file_bytes.is_some() {
                return Err(Trouble::Again("ended before its beginning had come".into(), None));
            }
            Ok((bytes, body.file_bytes, body.validator))
        })?;
        let stated = bytes.get(24..32).and_then(|field| field.first_chunk()).map(|b| u64::from_le_bytes(*b));
        let file_bytes = file_bytes.or(stated).unwrap_or(bytes.len() as u64);
        let head_bytes =
            Archive::<Vec<u8>>::head_bytes(&bytes, file_bytes, &self.options.limits).map_err(format)?;
        let more = bytes.len() as u64..head_bytes;
        bytes.truncate(usize::try_from(head_bytes).unwrap_or(usize::MAX));
        if !more.is_empty() {
            bytes.extend(self.read(more, &validator)?);
        }
        Ok(Head { bytes, file_bytes, validator })
    }

    /// Gets all of `range`.
    pub(super) fn read(&self, range: Range<u64>, validator: &Option<String>) -> Result<Vec<u8>> {
        self.retry(&|| {
            let mut body = self.get(range.clone())?;
            if body.validator != *validator {
                let problem = "another file has taken its place: fetch it anew";
                return Err(Trouble::Ends(Error::new(ErrorKind::Changed, self.remote.name(), problem)));
            }
            skip(&mut body.reader, range.start.saturating_sub(body.start))?;
            let (length, mut bytes) = (range.end.saturating_sub(range.start), Vec::new());
            let read = (&mut body.reader).take(length).read_to_end(&mut bytes);
            match read.map_err(|e| Trouble::Again(e.to_string(), None))? as u64 == length {
                true => Ok(bytes),
                false => Err(Trouble::Again("ended before all that was asked for had come".into(), None)),
            }
        })
    }

    fn retry<T>(&self, work: &dyn Fn() -> core::result::Result<T, Trouble>) -> Result<T> {
        let mut failures = 0u32;
        loop {
            match work() {
                Ok(value) => return Ok(value),
                Err(Trouble::Ends(error)) => return Err(error),
                Err(again) => {
                    let (problem, asked) = again.problem();
                    failures = failures.saturating_add(1);
                    // An address at which nobody is may be a wrong one.
                    if failures >= self.options.attempts || !self.answered.get() {
                        return Err(Error::new(ErrorKind::Unreachable, self.remote.name(), problem));
                    }
                    std::thread::sleep(asked.unwrap_or_else(|| pause(self.options.pause, failures)));
                }
            }
        }
    }
}

/// The pause after `failures` failures in a row.
pub(super) fn pause(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

pub(super) fn skip(reader: &mut impl Read, bytes: u64) -> core::result::Result<(), Trouble> {
    let skipped = std::io::copy(&mut reader.take(bytes), &mut std::io::sink());
    match skipped.map_err(|e| Trouble::Again(e.to_string(), None))? == bytes {
        true => Ok(()),
        false => Err(Trouble::Again("ended before what was asked for".into(), None)),
    }
}
