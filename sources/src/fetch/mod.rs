//! A file that grows into what a source has.

mod begin;
mod demand;

use crate::error::{Error, ErrorKind, Result};
use crate::groups::{Group, Groups};
use crate::queue::{Queue, Request};
use crate::remote::{Body, Remote};
use begin::{Begin, Head, Trouble, pause, skip};
use cmf_format::{Limits, wire};
use cmf_loader::{Model, Schedule, Want};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How often a source may give other bytes for a piece than those of its hash.
const CORRUPT_TIMES: u32 = 4;

/// How a file is fetched.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Requests at a time.
    pub connections: usize,
    /// Bytes of a request, at most where it is for more than one chunk group.
    pub request_bytes: u64,
    /// How long nothing may come before a request has failed.
    pub stall: Duration,
    /// The pause after the first failure; it doubles with each that follows.
    pub pause: Duration,
    /// Failures in a row, without anything new in between, that end a fetch.
    pub attempts: u32,
    /// Ceilings for what the file may state.
    pub limits: Limits,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            request_bytes: 1 << 20,
            stall: Duration::from_secs(20),
            pause: Duration::from_millis(500),
            attempts: 8,
            limits: Limits::default(),
        }
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of payload that are there and verified, of those that are wanted.
    pub have_bytes: u64,
    /// Bytes of payload that are wanted.
    pub wanted_bytes: u64,
    /// Bytes received in this fetch.
    pub received_bytes: u64,
    /// Steps of the schedule that can be read.
    pub arrived: usize,
}

/// A file that is being fetched.
pub struct Fetch {
    remote: Box<dyn Remote>,
    options: FetchOptions,
    target: PathBuf,
    part: PathBuf,
    /// Locked, so that nobody else writes to it.
    file: File,
    model: Model,
    schedule: Schedule,
    /// By segment, of those that tensors on demand alone need: the order in which they come.
    demanded: Vec<Option<usize>>,
    validator: Option<String>,
    shared: Mutex<Shared>,
    moved: Condvar,
    stopped: AtomicBool,
    /// Held by whoever reads a source that has no ranges.
    stream: Mutex<()>,
}

/// What workers share.
struct Shared {
    queue: Option<Queue>,
    /// The groups of that queue, and those of each segment.
    groups: (Arc<Vec<Group>>, Arc<Vec<Range<usize>>>),
    /// Whether nobody gets anything any more.
    ended: bool,
    /// Steps that are wanted.
    wanted: usize,
    received_bytes: u64,
    /// Failures since something new came.
    failures: u32,
    corrupt: u32,
    error: Option<Error>,
}

impl Fetch {
    /// Begins to fetch `remote` to `target`, or goes on: gets header and directory and the hashes of
    /// chunk groups. The file grows as `target` with `.part` added to its name.
    ///
    /// # Errors
    /// `Busy` when another fetch is at it, `Format` when it is no `.cmf`, `Unreachable`, `Refused`,
    /// `Corrupt`, `Io`.
    pub fn begin(remote: Box<dyn Remote>, target: &Path, options: FetchOptions) -> Result<Self> {
        let mut part = target.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let io = |e| Error::io(&part, &e);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&part).map_err(io)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                Error::new(ErrorKind::Busy, part.display(), "is being fetched already")
            }
            TryLockError::Error(e) => Error::io(&part, &e),
        })?;
        let begun = Begin::new(remote.as_ref(), &options);
        let Head { bytes, file_bytes, validator } = begun.head()?;
        // What is there belongs to the same file if it begins with the same header: that is its hash.
        let mut header = Vec::new();
        let header_bytes = wire::HEADER_BYTES.min(bytes.len() as u64);
        (&file).take(header_bytes).read_to_end(&mut header).map_err(io)?;
        if !bytes.starts_with(&header) || header.is_empty() {
            file.set_len(0).map_err(io)?;
        }
        file.set_len(file_bytes).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(&bytes).map_err(io)?;
        let open = cmf_loader::OpenOptions { limits: options.limits.clone(), ..Default::default() };
        let model = Model::open_with(&part, &open)?;
        let hashes = model.archive().segment(model.archive().header().chunk_hash_segment.get());
        if let Some(segment) = hashes.filter(|segment| segment.verify().is_err()) {
            let range = segment.record().offset.get()..segment.record().stored_bytes.get();
            let range = range.start..range.start.saturating_add(range.end);
            if range.end - range.start > options.limits.decoded_segment_bytes {
                let problem = "hashes of chunk groups do not fit memory";
                return Err(Error::new(ErrorKind::Format, remote.name(), problem));
            }
            write_at(&file, &begun.read(range.clone(), &validator)?, range.start).map_err(io)?;
            segment.verify().map_err(|e| Error::new(ErrorKind::Corrupt, remote.name(), e))?;
        }
        if model.references().len() > 0 {
            let problem = "is one of several files of a model: fetch each";
            return Err(Error::new(ErrorKind::Format, remote.name(), problem));
        }
        let schedule = model.schedule()?.clone();
        let wanted = schedule.steps();
        let shared = Shared {
            queue: None,
            groups: Default::default(),
            ended: false,
            wanted,
            received_bytes: 0,
            failures: 0,
            corrupt: 0,
            error: None,
        };
        Ok(Self {
            remote,
            options,
            target: target.to_owned(),
            part,
            file,
            model,
            schedule,
            demanded: Vec::new(),
            validator,
            shared: Mutex::new(shared),
            moved: Condvar::new(),
            stopped: AtomicBool::new(false),
            stream: Mutex::new(()),
        })
    }

    /// The file that grows, open: its directory is there.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where it grows.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// The order in which units come.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Says what is wanted of each tensor, by name: steps are then those of [`Model::schedule_for`]. Before
    /// [`Fetch::limit`] and [`Fetch::run`].
    ///
    /// What is wanted on demand ([`Want::Demand`]) comes when somebody asks for it ([`Fetch::ask`],
    /// [`Fetch::bring`]). With such tensors [`Fetch::run`] goes on until [`Fetch::stop`], or until the whole file is
    /// there.
    ///
    /// # Errors
    /// `Format`.
    pub fn want(&mut self, want: &dyn Fn(&str) -> Want) -> Result<()> {
        self.schedule = self.model.schedule_for(want)?;
        let planned = |name: &str| match want(name) {
            Want::Demand => Want::Budget,
            other => other,
        };
        let all = self.model.schedule_for(&planned)?.segment_steps();
        let steps = self.schedule.segment_steps();
        let demanded = all.into_iter().zip(steps).map(|(all, step)| all.filter(|_| step.is_none()));
        self.demanded = demanded.collect();
        let mut shared = self.lock();
        (shared.queue, shared.ended, shared.wanted) = (None, false, self.schedule.steps());
        Ok(())
    }

    /// Wants no more than the first `steps` steps; before [`Fetch::run`].
    pub fn limit(&self, steps: usize) {
        self.lock().wanted = steps.min(self.schedule.steps());
    }

    /// Wants all steps and, behind them, all that is on demand, whether somebody asks for it or not; before
    /// [`Fetch::run`].
    pub fn want_demanded(&self) {
        self.lock().wanted = self.schedule.steps().saturating_add(1);
    }

    /// Steps of the schedule that can be read, with all that every model needs; `None` when that is
    /// not there.
    pub fn arrived(&self) -> Option<usize> {
        let shared = self.lock();
        let queue = shared.queue.as_ref()?;
        queue.has(0).then(|| queue.arrived())
    }

    /// Waits until more than `steps` steps can be read, or the fetch has ended; gives how many.
    pub fn wait_beyond(&self, steps: Option<usize>) -> Option<usize> {
        let mut shared = self.lock();
        loop {
            let queue = shared.queue.as_ref();
            let arrived = queue.filter(|queue| queue.has(0)).map(Queue::arrived);
            let ended = shared.error.is_some()
                || shared.ended
                || self.is_stopped()
                || queue.is_some_and(Queue::is_done);
            if arrived > steps || ended {
                return arrived;
            }
            shared = self.moved.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends [`Fetch::run`] soon, with what has come.
    pub fn stop(&self) {
        // Under the lock: whoever has seen that it goes on waits already.
        let shared = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        drop(shared);
        self.moved.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Gets what is wanted and missing, and tells `progress` of it, from several threads.
    ///
    /// # Errors
    /// `Unreachable` when too many requests in a row fail, `Refused`, `Changed`, `Corrupt`, `Io`. What
    /// has come stays.
    pub fn run(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
        self.run_to(usize::MAX, progress)
    }

    /// Gets what every model needs, as its configuration, and no units: [`Fetch::want`] may come after it. Then
    /// [`Fetch::run`] gets the rest.
    ///
    /// # Errors
    /// As [`Fetch::run`].
    pub fn run_first(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
        self.run_to(0, progress)?;
        let mut shared = self.lock();
        (shared.queue, shared.ended) = (None, false);
        Ok(())
    }

    /// Gets what is missing of what is wanted, of the first `last` steps.
    fn run_to(&self, last: usize, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
        let groups = Groups::of(&self.model, &self.schedule, &self.demanded).inspect_err(|_| self.stop())?;
        let present = groups.present(&self.file, last);
        let (steps, required) = (self.schedule.steps(), self.schedule.required_steps());
        let on_demand = last > steps && self.demanded.iter().any(Option::is_some);
        {
            let mut shared = self.lock();
            let wanted = shared.wanted.min(last);
            shared.queue = Some(Queue::new(&groups.all, &present, steps, required.min(wanted), wanted));
            shared.groups = (Arc::clone(&groups.all), Arc::clone(&groups.of_segments));
            (shared.ended, shared.error, shared.failures, shared.corrupt) = (false, None, 0, 0);
            self.moved.notify_all();
        }
        progress(self.progress());
        let way = |asked_only| Way { on_demand, asked_only };
        std::thread::scope(|scope| {
            for _ in 0..self.options.connections.max(1) {
                scope.spawn(|| self.work(&groups, way(false), progress));
            }
            if on_demand {
                // What somebody waits for does not wait for what was asked for before.
                scope.spawn(|| self.work(&groups, way(true), progress));
            }
        });
        let mut shared = self.lock();
        shared.ended = true;
        self.moved.notify_all();
        shared.error.clone().map_or(Ok(()), Err)
    }

    /// Renames the file when all of it has come; gives where it is.
    ///
    /// # Errors
    /// `Busy` when a part is missing, `Io`.
    pub fn finish(self) -> Result<PathBuf> {
        if !self.lock().queue.as_ref().is_some_and(Queue::is_whole) {
            return Err(Error::new(ErrorKind::Busy, self.part.display(), "is not all of the file"));
        }
        self.file.sync_all().map_err(|e| Error::io(&self.part, &e))?;
        std::fs::rename(&self.part, &self.target).map_err(|e| Error::io(&self.target, &e))?;
        Ok(self.target)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let shared = self.lock();
        let (have_bytes, wanted_bytes, arrived) =
            shared.queue.as_ref().map_or((0, 0, 0), |q| (q.have_bytes, q.wanted_bytes, q.arrived()));
        Progress { have_bytes, wanted_bytes, received_bytes: shared.received_bytes, arrived }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether workers should go on.
    fn goes_on(&self, shared: &Shared, way: Way) -> bool {
        let queue = shared.queue.as_ref();
        let more = |queue: &Queue| if way.on_demand { !queue.is_whole() } else { !queue.is_done() };
        shared.error.is_none() && !self.is_stopped() && queue.is_some_and(more)
    }

    /// Makes requests until nothing is left to ask for.
    fn work(&self, groups: &Groups<'_>, way: Way, progress: &(dyn Fn(Progress) + Sync)) {
        loop {
            let request = {
                let mut shared = self.lock();
                if !self.goes_on(&shared, way) {
                    return self.moved.notify_all();
                }
                let most = self.options.request_bytes;
                let take = |queue: &mut Queue| queue.take(&groups.all, most, way.asked_only);
                match shared.queue.as_mut().and_then(take) {
                    Some(request) => request,
                    None => {
                        // What others asked for may come back.
                        let wait = self.moved.wait_timeout(shared, Duration::from_millis(100));
                        drop(wait);
                        continue;
                    }
                }
            };
            let result = self.get(groups, &request, way, progress);
            let mut shared = self.lock();
            if let Some(queue) = shared.queue.as_mut() {
                queue.put_back(&request);
            }
            let pause = match result {
                Ok(()) => None,
                Err(Trouble::Ends(error)) => {
                    shared.error.get_or_insert(error);
                    None
                }
                Err(again) => {
                    let (problem, asked) = again.problem();
                    shared.failures = shared.failures.saturating_add(1);
                    if shared.failures >= self.options.attempts {
                        let error = Error::new(ErrorKind::Unreachable, self.remote.name(), problem);
                        shared.error.get_or_insert(error);
                    }
                    Some(asked.unwrap_or_else(|| pause(self.options.pause, shared.failures)))
                }
            };
            self.moved.notify_all();
            drop(shared);
            if let Some(pause) = pause {
                self.sleep(pause, way);
            }
        }
    }

    /// Sleeps, but not on when the fetch has ended.
    fn sleep(&self, pause: Duration, way: Way) {
        let deadline = std::time::Instant::now() + pause;
        let mut shared = self.lock();
        while self.goes_on(&shared, way) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.moved.wait_timeout(shared, left).unwrap_or_else(PoisonError::into_inner);
            shared = waited.0;
        }
    }

    /// Makes a request, and keeps each group that comes and has its hash.
    fn get(
        &self,
        groups: &Groups<'_>,
        request: &Request,
        way: Way,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> core::result::Result<(), Trouble> {
        let remote = self.remote.as_ref();
        let body = remote.get(request.bytes.clone()).map_err(|failure| Trouble::of(remote, failure))?;
        if body.validator != self.validator || body.file_bytes.is_some_and(|n| n != self.model.file_bytes()) {
            let problem = "another file has taken its place: fetch it anew";
            return Err(Trouble::Ends(Error::new(ErrorKind::Changed, self.remote.name(), problem)));
        }
        if body.start == request.bytes.start {
            return self.receive(groups, request.groups.clone(), body, way, progress);
        }
        // The whole file comes, whatever is asked for: one worker takes all of it.
        let _stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |shared: &Shared| shared.queue.as_ref().is_some_and(|q| q.is_here(request.groups.start));
        if done(&self.lock()) {
            return Ok(());
        }
        self.receive(groups, 0..groups.all.len(), body, way, progress)
    }

    /// Reads the groups `wanted`, or as many as come.
    fn receive(
        &self,
        groups: &Groups<'_>,
        wanted: Range<usize>,
        mut body: Body,
        way: Way,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> core::result::Result<(), Trouble> {
        let mut at = body.start;
        let mut bytes = Vec::new();
        for index in wanted {
            let Some(group) = groups.all.get(index) else { break };
            if !self.goes_on(&self.lock(), way) {
                return Ok(());
            }
            skip(&mut body.reader, group.range.start.saturating_sub(at))?;
            let length = group.range.end.saturating_sub(group.range.start);
            bytes.clear();
            let read = (&mut body.reader).take(length).read_to_end(&mut bytes);
            let read = read.map_err(|e| Trouble::Again(e.to_string(), None))? as u64;
            if read < length {
                return Err(Trouble::Again("ended before all that was asked for had come".into(), None));
            }
            at = group.range.end;
            if !groups.matches(group, &bytes) {
                let mut shared = self.lock();
                shared.corrupt = shared.corrupt.saturating_add(1);
                let problem = format!("bytes {:?} do not have their hash", group.range);
                return Err(match shared.corrupt >= CORRUPT_TIMES {
                    true => Trouble::Ends(Error::new(ErrorKind::Corrupt, self.remote.name(), problem)),
                    false => Trouble::Again(problem, None),
                });
            }
            if !self.lock().queue.as_ref().is_some_and(|queue| queue.is_here(index)) {
                write_at(&self.file, &bytes, group.range.start)
                    .map_err(|e| Trouble::Ends(Error::io(&self.part, &e)))?;
            }
            let mut shared = self.lock();
            shared.received_bytes = shared.received_bytes.saturating_add(length);
            if shared.queue.as_mut().is_some_and(|queue| queue.came(index, group)) {
                (shared.failures, shared.corrupt) = (0, 0);
            }
            drop(shared);
            self.moved.notify_all();
            progress(self.progress());
        }
        Ok(())
    }
}

/// How a worker works.
#[derive(Clone, Copy)]
struct Way {
    /// Whether it waits for what somebody asks for when nothing is left that is wanted.
    on_demand: bool,
    /// Whether it does nothing else.
    asked_only: bool,
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = bytes.get(written..).unwrap_or(&[]);
        offset = offset.saturating_add(written as u64);
    }
    Ok(())
}
