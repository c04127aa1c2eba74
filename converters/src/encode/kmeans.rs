//! Training of additive codebooks: k-means, one book on what the books before leave, then all
//! together.

use super::random::SplitMix64;
use super::search::{Block, Books, LANES, Scratch, search};
use rayon::prelude::*;

/// Vectors with the weights of their elements.
#[derive(Clone, Debug)]
pub(super) struct Samples {
    pub(super) dim: usize,
    /// `[count, dim]`, row-major.
    pub(super) values: Vec<f32>,
    /// `[count, dim]`, row-major.
    pub(super) weights: Vec<f32>,
}

/// How codebooks are trained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Training {
    pub(super) books: usize,
    pub(super) entries: usize,
    pub(super) iterations: u32,
    pub(super) beam: usize,
    pub(super) seed: u64,
}

/// Rounds go on while they lower the error by this part.
const WORTHWHILE: f64 = 1e-3;
/// Up to so many entries are chosen by k-means++, whose time grows with their number for every
/// sample; more entries begin as a plain sample.
const SPREAD_ENTRIES: usize = 1024;
/// Vectors that one thread takes at a time.
const TASK_VECTORS: usize = 16 * LANES;

/// Trained books, and the weighted squared error of the samples after each of the last rounds.
pub(super) fn train(samples: &Samples, training: &Training) -> (Books, Vec<f64>) {
    let mut random = SplitMix64::new(training.seed);
    let mut state = State {
        samples,
        books: Books { books: 0, entries: training.entries, dim: samples.dim, values: Vec::new() },
        codes: Vec::new(),
        errors: vec![0.0; samples.count()],
        beam: training.beam,
    };
    let mut history = Vec::new();
    for _ in 0..training.books {
        state.add_book(&mut random);
        // One of several books needs fewer rounds: joint training goes on where they stop.
        let rounds = if training.books == 1 { training.iterations } else { training.iterations.div_ceil(2) };
        history = state.rounds(rounds, |state| {
            state.update(state.books.books - 1);
            state.assign_last()
        });
    }
    if training.books > 1 {
        history = vec![state.assign()];
        history.extend(state.rounds(training.iterations, |state| {
            (0..training.books).for_each(|book| state.update(book));
            state.assign()
        }));
    }
    (state.books, history)
}

impl Samples {
    pub(super) fn count(&self) -> usize {
        self.values.len() / self.dim.max(1)
    }

    fn value(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    fn weight(&self, index: usize) -> &[f32] {
        &self.weights[index * self.dim..(index + 1) * self.dim]
    }
}

struct State<'a> {
    samples: &'a Samples,
    books: Books,
    /// `[count, books]`, row-major.
    codes: Vec<u16>,
    /// Weighted squared error of each sample.
    errors: Vec<f32>,
    beam: usize,
}

impl State<'_> {
    /// Up to so many rounds, fewer when they no longer help; gives the error after each.
    fn rounds(&mut self, most: u32, mut round: impl FnMut(&mut Self) -> f64) -> Vec<f64> {
        let mut history = Vec::new();
        for _ in 0..most {
            let last = history.last().copied().unwrap_or(f64::INFINITY);
            let error = round(self);
            history.push(error);
            if error >= last * (1.0 - WORTHWHILE) {
                break;
            }
        }
        history
    }

    /// What the codes leave of a sample; `but` is a book that is not subtracted.
    fn rest(&self, index: usize, but: usize, rest: &mut [f32]) {
        rest.copy_from_slice(self.samples.value(index));
        let codes = &self.codes[index * self.books.books..(index + 1) * self.books.books];
        for (book, code) in codes.iter().enumerate().filter(|(book, _)| *book != but) {
            rest.iter_mut().zip(self.books.entry(book, *code)).for_each(|(r, c)| *r -= c);
        }
    }

    /// Adds a book for what the books before leave.
    fn add_book(&mut self, random: &mut SplitMix64) {
        let (count, dim, before) = (self.samples.count(), self.samples.dim, self.books.books);
        let mut rests = vec![0.0; count * dim];
        rests
            .par_chunks_mut(dim)
            .with_min_len(TASK_VECTORS)
            .enumerate()
            .for_each(|(index, rest)| self.rest(index, usize::MAX, rest));
        let entries = match self.books.entries {
            entries if entries <= SPREAD_ENTRIES => self.spread(&rests, random),
            entries => {
                let stretch = |end: usize| (end as u128 * count as u128 / entries as u128) as usize;
                let chosen = (0..entries).map(|entry| {
                    let (from, to) = (stretch(entry), stretch(entry + 1));
                    (from + random.below(to - from)).min(count - 1)
                });
                chosen.flat_map(|index| &rests[index * dim..(index + 1) * dim]).copied().collect()
            }
        };
        self.books.values.extend_from_slice(&entries);
        self.books.books += 1;
        let mut codes = vec![0; count * self.books.books];
        for (codes, old) in codes.chunks_exact_mut(self.books.books).zip(self.codes.chunks(before.max(1))) {
            codes[..before].copy_from_slice(&old[..before]);
        }
        self.codes = codes;
        self.assign_last();
    }

    /// Entries that lie apart: k-means++ (Arthur & Vassilvitskii 2007).
    fn spread(&self, rests: &[f32], random: &mut SplitMix64) -> Vec<f32> {
        let (count, dim) = (self.samples.count(), self.samples.dim);
        let mut distances = vec![f32::INFINITY; count];
        let mut entries = Vec::with_capacity(self.books.entries * dim);
        for entry in 0..self.books.entries {
            let chosen = if entry == 0 { random.below(count) } else { draw(&distances, random) };
            let center = &rests[chosen * dim..(chosen + 1) * dim];
            entries.extend_from_slice(center);
            distances
                .par_iter_mut()
                .with_min_len(TASK_VECTORS)
                .zip(rests.par_chunks_exact(dim).zip(self.samples.weights.par_chunks_exact(dim)))
                .for_each(|(least, (rest, weights))| {
                    *least = least.min(weighted_distance(rest, center, weights));
                });
        }
        entries
    }

    /// Moves each entry of a book to the mean of what the other books leave to it. An entry that no
    /// sample uses moves to what is left of the worst sample instead.
    fn update(&mut self, book: usize) {
        let (dim, entries, books) = (self.samples.dim, self.books.entries, self.books.books);
        // Sums over fixed ranges of samples, added in order: the same for any number of threads.
        let range = self.samples.count().div_ceil(16).max(4096);
        let parts: Vec<Vec<(f64, f64)>> = (0..self.samples.count().div_ceil(range))
            .into_par_iter()
            .map(|part| {
                let mut sums = vec![(0.0, 0.0); entries * dim];
                let mut rest = vec![0.0; dim];
                for index in part * range..((part + 1) * range).min(self.samples.count()) {
                    self.rest(index, book, &mut rest);
                    let code = usize::from(self.codes[index * books + book]);
                    let sums = &mut sums[code * dim..(code + 1) * dim];
                    for ((sum, rest), weight) in sums.iter_mut().zip(&rest).zip(self.samples.weight(index)) {
                        sum.0 += f64::from(*weight) * f64::from(*rest);
                        sum.1 += f64::from(*weight);
                    }
                }
                sums
            })
            .collect();
        let mut sums = vec![(0.0, 0.0); entries * dim];
        for part in &parts {
            sums.iter_mut().zip(part).for_each(|(sum, part)| {
                sum.0 += part.0;
                sum.1 += part.1;
            });
        }
        let mut used = vec![false; entries];
        (0..self.samples.count())
            .for_each(|index| used[usize::from(self.codes[index * books + book])] = true);
        let unused = used.iter().filter(|used| !**used).count();
        let mut worst = self.worst(unused).into_iter();
        let mut rest = vec![0.0; dim];
        for (entry, used) in used.iter().enumerate() {
            let start = (book * entries + entry) * dim;
            if *used {
                let target = &mut self.books.values[start..start + dim];
                for (value, (sum, weight)) in target.iter_mut().zip(&sums[entry * dim..]) {
                    if *weight > 0.0 {
                        *value = (sum / weight) as f32;
                    }
                }
            } else if let Some(index) = worst.next() {
                self.rest(index, book, &mut rest);
                self.books.values[start..start + dim].copy_from_slice(&rest);
            }
        }
    }

    /// The samples of greatest error, the first of equals.
    fn worst(&self, count: usize) -> Vec<usize> {
        if count == 0 {
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..self.errors.len()).collect();
        order.sort_by(|a, b| self.errors[*b].total_cmp(&self.errors[*a]).then(a.cmp(b)));
        order.truncate(count);
        order
    }

    /// Chooses the codes of the last book anew, those before being as they are; gives the sum of
    /// errors.
    fn assign_last(&mut self) -> f64 {
        let (books, dim) = (self.books.books, self.samples.dim);
        let last = Books {
            books: 1,
            values: self.books.values[(books - 1) * self.books.entries * dim..].to_vec(),
            ..self.books
        };
        let found = self.search(&last, 1, |index, rest| self.rest(index, books - 1, rest));
        for (index, (codes, error)) in found.into_iter().enumerate() {
            self.codes[index * books + books - 1] = codes[0];
            self.errors[index] = error;
        }
        self.errors.iter().copied().map(f64::from).sum()
    }

    /// Chooses all codes anew where that lowers the error; gives the sum of errors.
    fn assign(&mut self) -> f64 {
        let books = self.books.books;
        let found = self.search(&self.books, self.beam, |index, rest| {
            rest.copy_from_slice(self.samples.value(index));
        });
        let mut rest = vec![0.0; self.samples.dim];
        let mut total = 0.0;
        for (index, (codes, _)) in found.into_iter().enumerate() {
            let mut error = |state: &Self| {
                state.rest(index, usize::MAX, &mut rest);
                weighted_distance(&rest, &vec![0.0; rest.len()], state.samples.weight(index))
            };
            let before = error(self);
            let place = index * books..(index + 1) * books;
            let old = self.codes[place.clone()].to_vec();
            self.codes[place.clone()].copy_from_slice(&codes);
            let after = error(self);
            // A narrow beam may miss the codes that the samples have.
            if before < after {
                self.codes[place].copy_from_slice(&old);
            }
            self.errors[index] = before.min(after);
            total += f64::from(before.min(after));
        }
        total
    }

    /// Codes and error of each sample, whose vector `of` writes.
    fn search(
        &self,
        books: &Books,
        beam: usize,
        of: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Vec<(Vec<u16>, f32)> {
        let count = self.samples.count();
        let blocks: Vec<Vec<(Vec<u16>, f32)>> = (0..count.div_ceil(LANES))
            .into_par_iter()
            .map_init(
                || (Scratch::default(), Block::new(self.samples.dim), vec![0.0; self.samples.dim]),
                |(scratch, block, vector), number| {
                    let lanes = (count - number * LANES).min(LANES);
                    block.uniform = false;
                    for lane in 0..lanes {
                        let index = number * LANES + lane;
                        of(index, vector);
                        for (k, value) in vector.iter().enumerate() {
                            block.elements[k][lane] = *value;
                            block.weights[k][lane] = self.samples.weight(index)[k];
                        }
                    }
                    let (codes, error) = search(books, block, beam, scratch);
                    (0..lanes)
                        .map(|lane| (codes.iter().map(|code| code[lane]).collect(), 2.0 * error[lane]))
                        .collect()
                },
            )
            .collect();
        blocks.concat()
    }
}

/// An index with probability in proportion to its distance.
fn draw(distances: &[f32], random: &mut SplitMix64) -> usize {
    let total: f64 = distances.iter().copied().map(f64::from).sum();
    let mut left = random.unit() * total;
    for (index, distance) in distances.iter().enumerate() {
        left -= f64::from(*distance);
        if left < 0.0 {
            return index;
        }
    }
    // All distances are 0: any sample will do.
    random.below(distances.len())
}

fn weighted_distance(a: &[f32], b: &[f32], weights: &[f32]) -> f32 {
    a.iter().zip(b).zip(weights).map(|((a, b), weight)| weight * (a - b) * (a - b)).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn samples(count: usize, dim: usize) -> Samples {
        let mut random = SplitMix64::new(5);
        let mut next = || (0..6).map(|_| random.unit() as f32 - 0.5).sum::<f32>();
        Samples {
            dim,
            values: (0..count * dim).map(|_| next()).collect(),
            weights: (0..count * dim).map(|i| 1.0 + (i % 3) as f32).collect(),
        }
    }

    fn training(books: usize, entries: usize, beam: usize) -> Training {
        Training { books, entries, iterations: 12, beam, seed: 1 }
    }

    #[test]
    fn error_never_rises() {
        for (books, entries, beam) in [(1, 16, 1), (2, 16, 1), (2, 16, 4), (3, 8, 2)] {
            let (_, history) = train(&samples(3000, 4), &training(books, entries, beam));
            assert!(history.len() > 2);
            for pair in history.windows(2) {
                assert!(pair[1] <= pair[0] * (1.0 + 1e-6), "{books} books: {history:?}");
            }
        }
    }

    #[test]
    fn as_many_entries_as_vectors_leave_no_error() {
        let samples = samples(30, 3);
        let (_, history) = train(&samples, &training(1, 32, 1));
        assert!(history.last().is_some_and(|error| *error < 1e-4), "{history:?}");
    }

    #[test]
    fn equal_vectors_are_no_trouble() {
        let samples = Samples { dim: 2, values: vec![1.5; 200], weights: vec![1.0; 200] };
        let (_, history) = train(&samples, &training(2, 16, 2));
        assert!(history.last().is_some_and(|error| *error < 1e-4));
    }

    #[test]
    fn does_not_depend_on_the_number_of_threads() {
        let samples = samples(6000, 4);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(&samples, &training(2, 32, 2)).0.values)
        };
        assert_eq!(with(1), with(4));
    }
}
