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

/// Vectors that one thread takes at a time.
const TASK_VECTORS: usize = 16 * LANES;

/// Trained books, and the weighted squared error of the samples after each round of joint training.
pub(super) fn train(samples: &Samples, training: &Training) -> (Books, Vec<f64>) {
    let mut random = SplitMix64::new(training.seed);
    let mut state = State {
        samples,
        books: Books {
            books: 0,
            entries: training.entries,
            dim: samples.dim,
            values: Vec::new(),
        },
        codes: Vec::new(),
        errors: vec![0.0; samples.count()],
        beam: training.beam,
    };
    for _ in 0..training.books {
        state.add_book(&mut random);
        // One book at a time needs fewer rounds: joint training goes on where they stop.
        for _ in 0..training.iterations.div_ceil(2) {
            state.update(state.books.books - 1);
            state.assign_last();
        }
    }
    let mut history = vec![state.assign()];
    for _ in 0..training.iterations {
        (0..training.books).for_each(|book| state.update(book));
        let error = state.assign();
        let last = history.last().copied().unwrap_or(f64::INFINITY);
        history.push(error);
        if !(error < last * (1.0 - 1e-5)) {
            break;
        }
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
    /// What the codes leave of a sample; `but` is a book that is not subtracted.
    fn rest(&self, index: usize, but: usize, rest: &mut [f32]) {
        rest.copy_from_slice(self.samples.value(index));
        let codes = &self.codes[index * self.books.books..(index + 1) * self.books.books];
        for (book, code) in codes.iter().enumerate().filter(|(book, _)| *book != but) {
            rest.iter_mut().zip(self.books.entry(book, *code)).for_each(|(r, c)| *r -= c);
        }
    }

    /// Adds a book by k-means++ (Arthur & Vassilvitskii 2007) on what the books before leave.
    fn add_book(&mut self, random: &mut SplitMix64) {
        let (count, dim, before) = (self.samples.count(), self.samples.dim, self.books.books);
        let mut rests = vec![0.0; count * dim];
        rests
            .par_chunks_mut(dim)
            .with_min_len(TASK_VECTORS)
            .enumerate()
            .for_each(|(index, rest)| self.rest(index, usize::MAX, rest));
        let mut nearest = vec![(f32::INFINITY, 0u16); count];
        for entry in 0..self.books.entries {
            let chosen = match entry {
                0 => random.below(count),
                _ => draw(&nearest, random),
            };
            let center = rests[chosen * dim..(chosen + 1) * dim].to_vec();
            nearest
                .par_iter_mut()
                .with_min_len(TASK_VECTORS)
                .zip(rests.par_chunks_exact(dim).zip(self.samples.weights.par_chunks_exact(dim)))
                .for_each(|(nearest, (rest, weights))| {
                    let distance = weighted_distance(rest, &center, weights);
                    if distance < nearest.0 {
                        *nearest = (distance, entry as u16);
                    }
                });
            self.books.values.extend_from_slice(&center);
        }
        self.books.books += 1;
        let mut codes = Vec::with_capacity(count * self.books.books);
        for (index, (_, code)) in nearest.iter().enumerate() {
            codes.extend_from_slice(&self.codes[index * before..(index + 1) * before]);
            codes.push(*code);
        }
        self.codes = codes;
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
        (0..self.samples.count()).for_each(|index| used[usize::from(self.codes[index * books + book])] = true);
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

    /// Chooses the codes of the last book anew, those before being as they are.
    fn assign_last(&mut self) {
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
    fn search(&self, books: &Books, beam: usize, of: impl Fn(usize, &mut [f32]) + Sync) -> Vec<(Vec<u16>, f32)> {
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
fn draw(nearest: &[(f32, u16)], random: &mut SplitMix64) -> usize {
    let total: f64 = nearest.iter().map(|(distance, _)| f64::from(*distance)).sum();
    let mut left = random.unit() * total;
    for (index, (distance, _)) in nearest.iter().enumerate() {
        left -= f64::from(*distance);
        if left < 0.0 {
            return index;
        }
    }
    // All distances are 0: any sample will do.
    random.below(nearest.len())
}

fn weighted_distance(a: &[f32], b: &[f32], weights: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .zip(weights)
        .map(|((a, b), weight)| weight * (a - b) * (a - b))
        .sum()
}

#[cfg(test)]
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
        assert!(history.last().is_some_and(|error| *error < 1e-6), "{history:?}");
    }

    #[test]
    fn equal_vectors_are_no_trouble() {
        let samples = Samples { dim: 2, values: vec![1.5; 200], weights: vec![1.0; 200] };
        let (_, history) = train(&samples, &training(2, 16, 2));
        assert!(history.last().is_some_and(|error| *error < 1e-9));
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
