//! Multiplying with packed weights on CPUs.
//!
//! A [`Linear`] is a matrix of a `.cmf` whose bytes stay as they lie in the file: rows are decoded in
//! registers, or a few at a time in a cache, while they are multiplied with. No dense matrix is ever
//! made.
//!
//! ```
//! use cmf_format::archive::MatrixView;
//! use cmf_format::encoding::dense;
//! use cmf_format::write::{Content, MatrixEntry, TensorEntry};
//! use cmf_format::{Archive, ArchiveBuilder, DType, Limits};
//! use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
//!
//! let node = dense::pack_values(DType::F16, 2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! let mut builder = ArchiveBuilder::default();
//! builder.tensor(TensorEntry {
//!     name: "w".into(),
//!     dtype: DType::F16,
//!     shape: vec![2, 3],
//!     content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
//! });
//! let bytes = builder.to_vec()?;
//! let archive = Archive::parse(&bytes, &Limits::default())?;
//! let matrix = archive.tensor("w").and_then(|w| w.matrices().next()).ok_or("no such tensor")?;
//!
//! let isa = Isa::detect();
//! let linear = Linear::new(MatrixView::open(&matrix, u16::MAX)?, isa)?;
//! let (mut x, mut scratch) = (Activations::new(), Scratch::new());
//! x.load(&[1.0, 0.0, -1.0], 3, linear.view().input_transforms(), Precision::Exact, isa)?;
//! let mut y = [0.0; 2];
//! linear.multiply(&x, &mut y, &mut scratch)?;
//! assert_eq!(y, [-2.0, -2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Precision
//!
//! [`Precision::Exact`] multiplies f32 activations with the weights that the reference decode gives.
//! Products are added in 16 lanes, column `j` to lane `j mod 16`, each by one fused multiply-add, lanes
//! by halves, and terms in their order; from 8 tokens on, several terms are decoded and summed first. Of
//! `sparse` nodes that list single elements by column only these are multiplied with, the i-th of a row in
//! lane `i mod 16`. So the result is the same to the bit on every instruction set and at every number of
//! threads, and differs from the exact sum of products of a term by at most
//! `(cols / 16 + 5) * 2^-24 * Σ |w x|`, to first order. Levels of `nested` at one place, each over the one
//! before, are one term, with the values of the last level.
//!
//! [`Precision::Fast`] rounds activations to 8 bits with a scale for each 64, `max |x| / 127`, and adds
//! products as integers. Beside roundings of f32 the result differs by at most
//! `Σ |w| * max |x of its 64| / 254`. `grouped` nodes whose codes plus their offset, -128
//! to 0, are signed bytes, `nested` nodes and `trellis` nodes down columns with tables of signed bytes use it. A
//! table of `nested` is rounded to 16 bits for up to 3 tokens and 8 columns or more for each of its values, which
//! adds `(max - min of the row's table) / 131068 * Σ |x|`; else it multiplies exactly, as for 4 tokens or more levels
//! over another do that stand alone. `codebook` nodes whose codes have 6 to 12 bits, of at most 8192 entries, add
//! products of entries with activations, which are not rounded: roundings of f32 are relative to
//! `Σ |entry * scale * x|`. `sign_low_rank` nodes by fewer than 8 tokens sum the columns of each
//! component with their signs first, in f32, and differ by at most `(cols / 4 + rank + 10) * 2^-24 * Σ |a b x|`
//! over components and columns. All others multiply exactly.
//!
//! # Instruction sets
//!
//! [`Isa`] is a value: [`Isa::detect`] finds the widest, and tests run every one that the machine has.
//! Portable code is the definition. `Avx512` and the three of 64-bit Arm have kernels of their own, `Avx2`
//! has them for fast products of codes of 4 and 8 bits; what a set has none for is portable code that is
//! compiled for it. What no kernel is made for at all goes through the reference decode, some rows at a
//! time, with the same results.

mod activations;
#[expect(unsafe_code, reason = "vector loads and calls of functions compiled for an instruction set")]
mod arch;
mod error;
mod hadamard;
mod isa;
mod linear;
mod lines;
mod node;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "each kernel reads what it needs"))]
mod operands;
mod pool;
mod precision;
mod scratch;
mod work;

pub use activations::Activations;
pub use isa::Isa;
pub use linear::Linear;
pub use pool::awake;
pub use precision::Precision;
pub use scratch::Scratch;
