//! Search for the codes of additive codebooks: 64 vectors side by side, a beam of candidates each.

use multiversion::multiversion;

/// Vectors that are searched side by side.
pub(super) const LANES: usize = 64;

/// One number of each vector.
type Lane<T> = [T; LANES];

/// Up to [`LANES`] vectors, element by element.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Element `k` of every vector.
    pub(super) elements: Vec<Lane<f32>>,
    /// Weight of element `k` in the squared error, in every vector.
    pub(super) weights: Vec<Lane<f32>>,
    /// Whether all weights are 1, so that they need not be read.
    pub(super) uniform: bool,
}

impl Block {
    pub(super) fn new(dim: usize) -> Self {
        Self { elements: vec![[0.0; LANES]; dim], weights: vec![[1.0; LANES]; dim], uniform: true }
    }
}

/// Codebooks as they are searched: `books` times `entries` vectors of `dim` elements.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub(super) books: usize,
    pub(super) entries: usize,
    pub(super) dim: usize,
    /// `[books * entries, dim]`, row-major.
    pub(super) values: Vec<f32>,
}

impl Books {
    fn book(&self, book: usize) -> &[f32] {
        let len = self.entries * self.dim;
        &self.values[book * len..(book + 1) * len]
    }

    pub(super) fn entry(&self, book: usize, code: u16) -> &[f32] {
        let start = (book * self.entries + usize::from(code)) * self.dim;
        &self.values[start..start + self.dim]
    }
}

/// A partial choice of codes for every vector of a block.
#[derive(Clone, Debug)]
struct Candidate {
    /// What the codes leave of the vectors.
    rest: Vec<Lane<f32>>,
    /// Half the weighted squared error.
    error: Lane<f32>,
    /// Code of each book so far.
    codes: Vec<Lane<u16>>,
}

/// Reusable memory of a search.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    beam: Vec<Candidate>,
    scores: Vec<Lane<f32>>,
    picks: Vec<Lane<u32>>,
}

/// Codes of the least error found for every vector of a block, book by book, and half of that
/// error. With a `beam` of 1 the search is greedy.
pub(super) fn search<'s>(
    books: &Books,
    block: &Block,
    beam: usize,
    scratch: &'s mut Scratch,
) -> (&'s [Lane<u16>], &'s Lane<f32>) {
    let Scratch { beam: candidates, scores, picks } = scratch;
    candidates.clear();
    candidates.push(Candidate {
        rest: block.elements.clone(),
        error: half_squares(&block.elements, &block.weights),
        codes: Vec::new(),
    });
    for book in 0..books.books {
        let keep = if book + 1 == books.books { 1 } else { beam };
        let keep = keep.min(books.entries * candidates.len());
        // For each candidate its `keep` best successors, best first.
        scores.clear();
        picks.clear();
        scores.resize(candidates.len() * keep, [f32::INFINITY; LANES]);
        picks.resize(candidates.len() * keep, [0; LANES]);
        let lists = scores.chunks_mut(keep).zip(picks.chunks_mut(keep));
        for (candidate, (scores, picks)) in candidates.iter().zip(lists) {
            let weights = (!block.uniform).then_some(block.weights.as_slice());
            nearest(books.book(book), &candidate.rest, weights, &candidate.error, scores, picks);
        }
        let next = merge(books, book, candidates, keep, (scores, picks));
        *candidates = next;
    }
    let best = &scratch.beam[0];
    (&best.codes, &best.error)
}

fn half_squares(elements: &[Lane<f32>], weights: &[Lane<f32>]) -> Lane<f32> {
    let mut sum = [0.0; LANES];
    for (element, weight) in elements.iter().zip(weights) {
        for lane in 0..LANES {
            sum[lane] += 0.5 * weight[lane] * element[lane] * element[lane];
        }
    }
    sum
}

/// The best `keep` of all candidates' successors in every lane; a tie goes to the first.
fn merge(
    books: &Books,
    book: usize,
    candidates: &[Candidate],
    keep: usize,
    (scores, picks): (&[Lane<f32>], &[Lane<u32>]),
) -> Vec<Candidate> {
    let mut next = vec![
        Candidate {
            rest: vec![[0.0; LANES]; books.dim],
            error: [f32::INFINITY; LANES],
            codes: vec![[0; LANES]; book + 1],
        };
        keep
    ];
    for lane in 0..LANES {
        // Where each candidate's list of successors stands.
        let mut heads = vec![0usize; candidates.len()];
        for to in &mut next {
            let mut best = (f32::INFINITY, 0);
            for (from, head) in heads.iter().enumerate() {
                if *head < keep && scores[from * keep + head][lane] < best.0 {
                    best = (scores[from * keep + head][lane], from);
                }
            }
            let (error, from) = best;
            if error == f32::INFINITY {
                break;
            }
            let pick = picks[from * keep + heads[from]][lane] as u16;
            heads[from] += 1;
            let parent = &candidates[from];
            to.error[lane] = error;
            for (code, before) in to.codes.iter_mut().zip(&parent.codes) {
                code[lane] = before[lane];
            }
            to.codes[book][lane] = pick;
            for ((rest, before), entry) in to.rest.iter_mut().zip(&parent.rest).zip(books.entry(book, pick)) {
                rest[lane] = before[lane] - entry;
            }
        }
    }
    next
}

/// The `scores.len()` nearest entries of a book to every vector, by half the squared error.
fn nearest(
    book: &[f32],
    elements: &[Lane<f32>],
    weights: Option<&[Lane<f32>]>,
    error: &Lane<f32>,
    scores: &mut [Lane<f32>],
    picks: &mut [Lane<u32>],
) {
    macro_rules! of_dim {
        ($($dim:literal)*) => {
            match elements.len() {
                $($dim => {
                    let (elements, _) = elements.as_chunks::<$dim>();
                    let (entries, _) = book.as_chunks::<$dim>();
                    let weights = weights.map(|weights| weights.as_chunks::<$dim>().0);
                    match (elements, weights) {
                        ([elements], Some([weights])) => weighted_fixed(entries, elements, weights, error, scores, picks),
                        ([elements], _) => fixed(entries, elements, error, scores, picks),
                        _ => {}
                    }
                })*
                _ => any(book, elements, weights, error, scores, picks),
            }
        };
    }
    of_dim!(1 2 3 4 5 6 8 16)
}

#[multiversion(targets("x86_64+avx2"))]
fn fixed<const DIM: usize>(
    entries: &[[f32; DIM]],
    elements: &[Lane<f32>; DIM],
    error: &Lane<f32>,
    scores: &mut [Lane<f32>],
    picks: &mut [Lane<u32>],
) {
    for (entry, pick) in entries.iter().zip(0u32..) {
        let half: f32 = 0.5 * entry.iter().map(|c| c * c).sum::<f32>();
        let score = |lane: usize| {
            let mut s = error[lane] + half;
            for k in 0..DIM {
                s -= elements[k][lane] * entry[k];
            }
            s
        };
        insert(score, pick, scores, picks);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn weighted_fixed<const DIM: usize>(
    entries: &[[f32; DIM]],
    elements: &[Lane<f32>; DIM],
    weights: &[Lane<f32>; DIM],
    error: &Lane<f32>,
    scores: &mut [Lane<f32>],
    picks: &mut [Lane<u32>],
) {
    for (entry, pick) in entries.iter().zip(0u32..) {
        let score = |lane: usize| {
            let mut s = error[lane];
            for k in 0..DIM {
                s += weights[k][lane] * entry[k] * (0.5 * entry[k] - elements[k][lane]);
            }
            s
        };
        insert(score, pick, scores, picks);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn any(
    book: &[f32],
    elements: &[Lane<f32>],
    weights: Option<&[Lane<f32>]>,
    error: &Lane<f32>,
    scores: &mut [Lane<f32>],
    picks: &mut [Lane<u32>],
) {
    for (entry, pick) in book.chunks_exact(elements.len()).zip(0u32..) {
        let mut score = *error;
        for (k, (c, element)) in entry.iter().zip(elements).enumerate() {
            let weight = weights.map_or(&[1.0; LANES], |weights| &weights[k]);
            for lane in 0..LANES {
                score[lane] += weight[lane] * c * (0.5 * c - element[lane]);
            }
        }
        insert(|lane| score[lane], pick, scores, picks);
    }
}

/// Puts an entry into each lane's ascending list; an equal score stays behind.
#[inline(always)]
fn insert(score: impl Fn(usize) -> f32, pick: u32, scores: &mut [Lane<f32>], picks: &mut [Lane<u32>]) {
    if let ([best], [index]) = (&mut *scores, &mut *picks) {
        for lane in 0..LANES {
            let new = score(lane);
            let better = new < best[lane];
            best[lane] = if better { new } else { best[lane] };
            index[lane] = if better { pick } else { index[lane] };
        }
        return;
    }
    let score: Lane<f32> = core::array::from_fn(score);
    let last = scores.len() - 1;
    let misses_all = score.iter().zip(&scores[last]).fold(true, |all, (new, worst)| all & (new >= worst));
    if misses_all {
        return;
    }
    // One lane at a time: few entries come this far, and LLVM 22 miscompiles a vectorised swap of
    // two arrays under a condition (with AVX, the load of one moves behind the store of the other).
    for (lane, new) in score.iter().enumerate() {
        if *new < scores[last][lane] {
            let mut at = last;
            while at > 0 && *new < scores[at - 1][lane] {
                scores[at][lane] = scores[at - 1][lane];
                picks[at][lane] = picks[at - 1][lane];
                at -= 1;
            }
            scores[at][lane] = *new;
            picks[at][lane] = pick;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::random::SplitMix64;

    fn uniform(random: &mut SplitMix64) -> f32 {
        random.unit() as f32 - 0.5
    }

    /// Least half error over all combinations of codes, for one vector.
    fn exhaustive(books: &Books, x: &[f32], weights: &[f32]) -> f32 {
        let combinations = books.entries.pow(books.books as u32);
        (0..combinations)
            .map(|mut combination| {
                let mut rest = x.to_vec();
                for book in 0..books.books {
                    let entry = books.entry(book, (combination % books.entries) as u16);
                    rest.iter_mut().zip(entry).for_each(|(r, c)| *r -= c);
                    combination /= books.entries;
                }
                rest.iter().zip(weights).map(|(r, w)| 0.5 * w * r * r).sum()
            })
            .fold(f32::INFINITY, f32::min)
    }

    #[test]
    fn one_book_gives_the_nearest_entry_and_a_full_beam_the_best_pair() {
        for dim in [1usize, 3, 4, 7, 16] {
            for (books, beam) in [(1, 1), (2, 8)] {
                for uniform_weights in [true, false] {
                    let mut random = SplitMix64::new(dim as u64);
                    let set = Books {
                        books,
                        entries: 8,
                        dim,
                        values: (0..books * 8 * dim).map(|_| uniform(&mut random)).collect(),
                    };
                    let mut block = Block::new(dim);
                    block.uniform = uniform_weights;
                    for k in 0..dim {
                        for lane in 0..LANES {
                            block.elements[k][lane] = uniform(&mut random);
                            if !uniform_weights {
                                block.weights[k][lane] = uniform(&mut random) + 0.5;
                            }
                        }
                    }
                    let mut scratch = Scratch::default();
                    let (_, error) = search(&set, &block, beam, &mut scratch);
                    for lane in 0..LANES {
                        let x: Vec<f32> = block.elements.iter().map(|e| e[lane]).collect();
                        let weights: Vec<f32> = block.weights.iter().map(|w| w[lane]).collect();
                        let least = exhaustive(&set, &x, &weights);
                        assert!((error[lane] - least).abs() < 1e-5, "{dim} {books}: {} {least}", error[lane]);
                    }
                }
            }
        }
    }
}
