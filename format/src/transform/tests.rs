use super::*;
use crate::wire::NONE;
use core::ops::Range;
use proptest::prelude::*;

fn shuffled(size: usize, seed: u64) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..size as u32).collect();
    for i in (1..size).rev() {
        indices.swap(i, (splitmix64(seed, i as u64) % (i as u64 + 1)) as usize);
    }
    indices
}

/// One of the orthogonal transforms, or a scale.
fn transform(which: u8, size: usize, seed: u64) -> Result<Transform> {
    let block = hadamard_block(size as u64);
    match which {
        0 => Ok(Transform::scale((0..size).map(|i| 0.5 + (i % 7) as f32).collect())),
        1 => Transform::sign_hadamard(size, block, seed),
        2 => Transform::sign_hadamard(size, block.min(4), 0),
        3 => {
            let mut signs = vec![0u8; size.div_ceil(32) * 4];
            (0..size)
                .filter(|i| splitmix64(seed, *i as u64) & 1 == 1)
                .for_each(|i| signs[i / 8] |= 1 << (i % 8));
            Transform::stored_sign_hadamard(size, block, &signs)
        }
        _ => Transform::permute(shuffled(size, seed)),
    }
}

fn vector(size: usize, seed: u64) -> Vec<f32> {
    (0..size).map(|i| (splitmix64(seed, i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// The transform as a matrix: column i is what becomes of unit vector i.
fn matrix(transform: &Transform, side: Side) -> Result<Vec<Vec<f32>>> {
    let size = transform.size();
    let mut rows = vec![vec![0.0; size]; size];
    for i in 0..size {
        let mut x = vec![0.0; size];
        x[i] = 1.0;
        transform.apply(side, &mut x)?;
        rows.iter_mut().zip(x).for_each(|(row, v)| row[i] = v);
    }
    Ok(rows)
}

fn close(a: &[f32], b: &[f32]) -> bool {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    a.len() == b.len() && error <= 1e-5 * norm(&mut b.iter().map(|v| f64::from(*v))) + 1e-30
}

#[test]
fn splitmix64_gives_the_published_sequence() {
    // The first outputs of the reference implementation for seed 1234567.
    let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
    for (index, word) in expected.into_iter().enumerate() {
        assert_eq!(splitmix64(1_234_567, index as u64), word);
    }
}

#[test]
fn hadamard_is_symmetric_and_orthogonal() -> Result<()> {
    for block in [1, 2, 4, 8, 64] {
        let h = matrix(&Transform::sign_hadamard(block, block as u64, 0)?, Side::Input)?;
        for (i, row) in h.iter().enumerate() {
            for (j, other) in h.iter().enumerate() {
                assert_eq!(row[j], h[j][i]);
                let dot: f64 = row.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-5, "{block}: {i} {j} {dot}");
            }
        }
    }
    Ok(())
}

#[test]
fn output_side_is_the_transpose() -> Result<()> {
    for which in 0..5 {
        for size in [1, 2, 12, 31, 48] {
            let t = transform(which, size, 77)?;
            let (input, output) = (matrix(&t, Side::Input)?, matrix(&t, Side::Output)?);
            for i in 0..size {
                for j in 0..size {
                    assert_eq!(input[i][j], output[j][i], "{which} {size}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn default_blocks_are_those_of_the_sample_model() {
    for (size, block) in [(576, 64), (1536, 512), (192, 64), (1, 1), (7, 1), (4096, 4096), (0, 1)] {
        assert_eq!(hadamard_block(size), block);
    }
}

#[test]
fn seed_0_and_stored_zeros_mean_no_signs() -> Result<()> {
    let (mut a, mut b) = (vector(40, 1), vector(40, 1));
    Transform::sign_hadamard(40, 8, 0)?.apply(Side::Input, &mut a)?;
    Transform::stored_sign_hadamard(40, 8, &[0; 8])?.apply(Side::Input, &mut b)?;
    assert_eq!(a, b);
    Ok(())
}

#[test]
fn rejects_blocks_that_do_not_divide() {
    for (size, block) in [(576, 128), (576, 3), (576, 0), (0, 0), (1, u64::from(NONE) + 1)] {
        let error = Transform::sign_hadamard(size, block, 1).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Structure), "{size} {block}");
    }
}

#[test]
fn rejects_indices_that_are_no_permutation() {
    for indices in [vec![0, 0], vec![0, 2], vec![1], vec![NONE, 0]] {
        assert_eq!(Transform::permute(indices).err().map(|e| e.kind()), Some(ErrorKind::Value));
    }
    assert!(Transform::permute(vec![]).is_ok());
    assert_eq!(Transform::permute_bytes(&[0; 5]).err().map(|e| e.kind()), Some(ErrorKind::Structure));
}

#[test]
fn rejects_signs_of_another_length_or_with_padding() {
    let kind = |signs: &[u8]| Transform::stored_sign_hadamard(9, 1, signs).err().map(|e| e.kind());
    assert_eq!(kind(&[0; 8]), Some(ErrorKind::Structure));
    assert_eq!(kind(&[0, 2, 0, 0]), Some(ErrorKind::Value));
    assert_eq!(kind(&[0xFF, 1, 0, 0]), None);
}

#[test]
fn rejects_vectors_and_rows_of_another_size() -> Result<()> {
    let t = Transform::scale(vec![1.0; 3]);
    assert_eq!(t.apply(Side::Input, &mut [0.0; 2]).err().map(|e| e.kind()), Some(ErrorKind::Argument));
    let mut source = |_: Range<usize>, _: &mut [f32]| Ok(());
    let error = left_multiply(&[t], 2..4, 1, &mut [0.0; 2], &mut source).err();
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::Argument));
    Ok(())
}

/// The rows of a row-major matrix, counting those asked for.
fn source<'s>(
    s: &'s [f32],
    cols: usize,
    asked: &'s mut usize,
) -> impl FnMut(Range<usize>, &mut [f32]) -> Result<()> + 's {
    move |rows, out| {
        *asked += rows.len();
        out.copy_from_slice(&s[rows.start * cols..rows.end * cols]);
        Ok(())
    }
}

#[test]
fn a_row_needs_its_hadamard_block_only() -> Result<()> {
    let s = vector(576 * 3, 5);
    let t = [Transform::sign_hadamard(576, 64, 9)?];
    let mut asked = 0;
    left_multiply(&t, 70..71, 3, &mut [0.0; 3], &mut source(&s, 3, &mut asked))?;
    assert_eq!(asked, 64);
    Ok(())
}

proptest! {
    #[test]
    fn transpose_undoes_what_is_orthogonal(
        which in 1u8..5,
        size in prop_oneof![Just(576usize), Just(1536), Just(192), 1usize..200],
        seed in any::<u64>(),
    ) {
        let t = transform(which, size, seed)?;
        let x = vector(size, seed ^ 1);
        for (first, second) in [(Side::Input, Side::Output), (Side::Output, Side::Input)] {
            let mut y = x.clone();
            t.apply(first, &mut y)?;
            t.apply(second, &mut y)?;
            prop_assert!(close(&y, &x), "{} {}", which, size);
        }
    }

    #[test]
    fn the_wrapped_matrix_does_what_the_steps_do(
        inputs in proptest::collection::vec(0u8..5, 0..4),
        outputs in proptest::collection::vec(0u8..5, 0..4),
        (rows, cols) in (1usize..40, 1usize..40),
        seed in any::<u64>(),
    ) {
        let list = |which: &[u8], size: usize| -> Result<Vec<Transform>> {
            which.iter().zip(0..).map(|(w, i)| transform(*w, size, seed ^ i)).collect()
        };
        let (inputs, outputs) = (list(&inputs, cols)?, list(&outputs, rows)?);
        let s = vector(rows * cols, seed);
        let product = |m: &[f32], x: &[f32]| -> Vec<f32> {
            m.chunks(cols).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };

        let mut wrapped = s.clone();
        right_multiply(&inputs, cols, &mut wrapped)?;
        let inner = wrapped.clone();
        let mut asked = 0;
        left_multiply(&outputs, 0..rows, cols, &mut wrapped, &mut source(&inner, cols, &mut asked))?;

        let mut x = vector(cols, seed ^ 9);
        let direct = product(&wrapped, &x);
        apply_all(&inputs, Side::Input, &mut x)?;
        let mut stepped = product(&s, &x);
        apply_all(&outputs, Side::Output, &mut stepped)?;
        let scale: f32 = wrapped.iter().map(|v| v.abs()).fold(1.0, f32::max);
        for (a, b) in direct.iter().zip(&stepped) {
            prop_assert!((a - b).abs() <= 1e-4 * scale * cols as f32, "{a} {b}");
        }

        // Any slice of rows has the same bits.
        for slice in [0..1, rows - 1..rows, rows / 3..rows - rows / 4] {
            let mut part = vec![0.0; slice.len() * cols];
            left_multiply(&outputs, slice.clone(), cols, &mut part, &mut source(&inner, cols, &mut asked))?;
            prop_assert_eq!(&part, &wrapped[slice.start * cols..slice.end * cols]);
        }
    }
}
