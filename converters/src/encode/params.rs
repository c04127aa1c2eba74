//! What a recipe says of one term: plain data with defaults, as it stands in TOML.

use cmf_format::DType;
use serde::{Deserialize, Serialize};

/// One term of a matrix: an encoding by name with its parameters.
///
/// ```
/// use cmf_converters::encode::{TermParams, Zero};
///
/// #[derive(serde::Deserialize)]
/// struct Rule {
///     terms: Vec<TermParams>,
/// }
///
/// let rule: Rule = toml::from_str(
///     r#"
///     [[terms]]
///     encoding = "grouped"
///     bits = 3
///     zero = "add"
///
///     [[terms]]
///     encoding = "sparse"
///     select = { fraction = 0.01 }
///
///     [[terms]]
///     encoding = "low_rank"
///     rank = 8
///     "#,
/// )?;
/// assert!(matches!(&rule.terms[0], TermParams::Grouped(own) if own.zero == Zero::Add));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "encoding", rename_all = "snake_case")]
pub enum TermParams {
    /// Elements of one type.
    Dense(DenseParams),
    /// Codes in groups.
    Grouped(GroupedParams),
    /// Single entries.
    Sparse(SparseParams),
    /// A product of two thin matrices.
    LowRank(LowRankParams),
    /// Sums of vectors from codebooks.
    Codebook(CodebookParams),
    /// Elements of one type, their exponents compressed.
    Lossless(LosslessParams),
    /// Paths through a bitshift trellis.
    Trellis(TrellisParams),
    /// Planes of signs with a magnitude of low rank.
    SignLowRank(SignLowRankParams),
    /// Codes of which every prefix is one.
    Nested(NestedParams),
}

impl TermParams {
    /// Nodes that the term becomes: in a progressive rule as many levels.
    pub fn nodes(&self) -> usize {
        match self {
            TermParams::SignLowRank(own) => own.planes as usize,
            TermParams::Nested(own) => own.bits.len(),
            _ => 1,
        }
    }

    /// The error feedback with which the term is encoded, where it has any.
    pub fn feedback(&self) -> Option<FeedbackParams> {
        match self {
            TermParams::Trellis(own) => {
                Some(FeedbackParams { damping: own.damping, power_cost: own.power_cost })
            }
            TermParams::Grouped(own) => Some(FeedbackParams { damping: own.damping, power_cost: 0.0 }),
            _ => None,
        }
    }
}

/// What error feedback depends on beside the second moments; see [`Feedback::new`](super::Feedback::new).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedbackParams {
    /// Added to the diagonal of the second moments, in units of its mean.
    pub damping: f64,
    /// What the square of each value that is chosen costs, in the same unit.
    pub power_cost: f64,
}

/// Parameters of a `trellis` term.
///
/// ```
/// use cmf_converters::encode::TrellisParams;
///
/// let params: TrellisParams = toml::from_str("step_bits = 1\nstate_bits = 8\ncode = \"table\"")?;
/// assert_eq!((params.step_bits, params.scale_rows), (1, 1));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrellisParams {
    /// Bits of a window, 6 to 16: encoding time doubles with each.
    pub state_bits: u8,
    /// Bits a weight, 1 to 4.
    pub step_bits: u8,
    /// How a window becomes a value.
    pub code: TrellisCode,
    /// Which way paths run.
    pub axis: PathAxis,
    /// Weights of a path; 0 is a whole column or row of the block.
    pub path_elems: u32,
    /// Rows that share a scale; 0 is all rows of a block.
    pub scale_rows: u32,
    /// How scales are stored.
    pub scale: Store,
    /// Factor of the scales that fit normal values best: above 1, rare large values are reached at
    /// the cost of all others.
    pub spread: f32,
    /// What is added to the diagonal of the second moments, in units of its mean, where there are
    /// any: more makes the error smaller in all directions, as a later term needs it, less makes it
    /// cost less now.
    pub damping: f64,
    /// What the square of each of the term's values costs, in the same unit, where there are any second
    /// moments: it keeps what errors add to later targets within the reach of few bits. About 0.3 for
    /// 1 bit a weight, 0.05 for 2.
    pub power_cost: f64,
}

impl Default for TrellisParams {
    fn default() -> Self {
        Self {
            state_bits: 12,
            step_bits: 2,
            code: TrellisCode::ByteSum,
            axis: PathAxis::Down,
            path_elems: 0,
            scale_rows: 1,
            scale: Store::F16,
            spread: 1.0,
            damping: 0.01,
            power_cost: 0.0,
        }
    }
}

/// Values of the windows of a trellis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrellisCode {
    /// Computed: the sum of the bytes of a product.
    #[default]
    ByteSum,
    /// A trained table of 8-bit values, shared by all tensors.
    Table,
    /// A trained table of 64 values whose place is a linear map of the window's bits: long windows at
    /// the speed of short ones.
    Hashed,
}

/// The direction of paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathAxis {
    /// Down the rows of a column: error feedback works from column to column.
    #[default]
    Down,
    /// Along a row: a single row is read without its neighbours.
    Along,
}

/// Parameters of a `dense` term.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenseParams {
    /// Element type; values are rounded to nearest even.
    pub dtype: Element,
}

/// Parameters of a `lossless` term.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LosslessParams {
    /// Element type; values that come from it are kept exactly, others are rounded to it.
    pub dtype: Element,
}

/// Element types of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Element {
    /// IEEE binary32.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// IEEE binary16.
    #[serde(rename = "f16")]
    F16,
    /// The high half of a binary32.
    #[serde(rename = "bf16")]
    Bf16,
    /// OCP FP8 E4M3; `dense` only.
    #[serde(rename = "f8_e4m3")]
    F8E4m3,
    /// OCP FP8 E5M2; `dense` only.
    #[serde(rename = "f8_e5m2")]
    F8E5m2,
}

impl From<Element> for DType {
    fn from(element: Element) -> DType {
        match element {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
            Element::Bf16 => DType::BF16,
            Element::F8E4m3 => DType::F8E4M3,
            Element::F8E5m2 => DType::F8E5M2,
        }
    }
}

/// Parameters of a `grouped` term.
///
/// ```
/// use cmf_converters::encode::{GroupedParams, Method, Zero};
///
/// let params: GroupedParams = toml::from_str(
///     r#"
///     bits = 3
///     group_cols = 16
///     zero = "add"
///     method = "mse"
///     scale = { grouped = { bits = 6, group_cols = 16, range = "unsigned" } }
///     "#,
/// )?;
/// assert_eq!((params.bits, params.zero, params.method), (3, Zero::Add, Method::Mse));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupedParams {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// What a code means.
    pub codes: Codes,
    /// Which integers the codes stand for; integer codes without a zero point only.
    pub range: Range,
    /// Rows of a group; 0 is all rows.
    pub group_rows: u32,
    /// Columns of a group; 0 is all columns.
    pub group_cols: u32,
    /// The zero point of a group.
    pub zero: Zero,
    /// How scales are stored.
    pub scale: Store,
    /// How zero points are stored, for [`Zero::Subtract`] and [`Zero::Add`].
    pub zero_store: Store,
    /// How scales and zero points are found.
    pub method: Method,
    /// Settings of [`Method::Hqq`].
    pub hqq: HqqParams,
    /// What is added to the diagonal of the second moments, in units of its mean, where they are
    /// known and the term stands alone or is a level of its own: codes then follow their errors.
    pub damping: f64,
}

impl Default for GroupedParams {
    fn default() -> Self {
        Self {
            bits: 4,
            codes: Codes::Integer,
            range: Range::Full,
            group_rows: 1,
            group_cols: 64,
            zero: Zero::None,
            scale: Store::F16,
            zero_store: Store::F16,
            method: Method::Rtn,
            hqq: HqqParams::default(),
            damping: 0.01,
        }
    }
}

/// What a code means before scale and zero point.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codes {
    /// Consecutive integers.
    #[default]
    Integer,
    /// 1 sign, 2 exponent and 1 mantissa bits; 4 bits.
    E2m1,
    /// 6 bits.
    E2m3,
    /// 6 bits.
    E3m2,
    /// 8 bits, largest 448.
    E4m3,
    /// 8 bits, largest 57344.
    E5m2,
    /// The 16 values of NF4 (Dettmers et al. 2023), 4 bits.
    Nf4,
    /// -1 and 1; 1 bit.
    Binary,
    /// Any 2^bits values; the code is the index.
    Table(Vec<f32>),
    /// Another small float without special codes: sign, exponent, mantissa from the top bit down.
    Minifloat {
        /// Whether there is a sign bit.
        signed: bool,
        /// Exponent bits, at least 1.
        exponent_bits: u8,
        /// Mantissa bits.
        mantissa_bits: u8,
        /// Exponent bias.
        bias: i32,
    },
}

/// Which integers `b`-bit codes stand for when there is no zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// `-2^(b-1)` to `2^(b-1) - 1`. Where the scale may be negative, the value of largest magnitude
    /// takes the code of `-2^(b-1)` (as ggml's `q4_0`).
    #[default]
    Full,
    /// `-(2^(b-1) - 1)` to `2^(b-1) - 1`: one code unused, both signs alike. Two bits are ternary.
    Symmetric,
    /// `0` to `2^b - 1`: for values of one sign, such as scales.
    Unsigned,
}

/// The zero point of a group. With one, integer codes stand for `0` to `2^b - 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Zero {
    /// `code * scale`.
    #[default]
    None,
    /// `(code - zero) * scale`, the zero point a code of the same width (GPTQ, AWQ).
    Code,
    /// `(code - zero) * scale`, the zero point a real number (HQQ).
    Subtract,
    /// `code * scale + zero` (k-quants, MLX).
    Add,
}

/// How the scales or zero points of a term are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Store {
    /// IEEE binary32.
    #[serde(rename = "f32")]
    F32,
    /// IEEE binary16.
    #[serde(rename = "f16")]
    F16,
    /// The high half of a binary32.
    #[serde(rename = "bf16")]
    Bf16,
    /// OCP FP8 E4M3. Weights are smaller than its steps: give it a scale by
    /// `{ grouped = { bits = 8, codes = "e4m3", group_rows = 0, group_cols = 0, scale = "f32" } }`.
    #[serde(rename = "f8_e4m3")]
    F8E4m3,
    /// OCP E8M0: powers of two. Scales only.
    #[serde(rename = "f8_e8m0")]
    F8E8m0,
    /// Quantised again; its groups are groups of groups.
    #[serde(rename = "grouped")]
    Grouped(Box<GroupedParams>),
}

/// How the scales and zero points of a `grouped` term are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// From the extremes of the group, codes by rounding to nearest.
    #[default]
    Rtn,
    /// Least (weighted) squared error: a grid of clipping ratios, each refitted in closed form.
    Mse,
    /// Half-quadratic fitting of the zero point for a p-norm of the error.
    Hqq,
}

/// Settings of half-quadratic quantisation (Badri & Shaji, "Half-Quadratic Quantization of Large
/// Machine Learning Models", 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HqqParams {
    /// The p of the p-norm, above 0 and at most 1.
    pub norm: f32,
    /// Initial weight of the quadratic term, for errors in units of the scale.
    pub beta: f32,
    /// Growth of `beta` in each iteration.
    pub kappa: f32,
    /// Most iterations; a group stops when its error no longer falls.
    pub iterations: u32,
}

impl Default for HqqParams {
    fn default() -> Self {
        Self { norm: 0.7, beta: 10.0, kappa: 1.01, iterations: 20 }
    }
}

/// Parameters of a `sparse` term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseParams {
    /// Which entries the term keeps.
    pub select: Select,
    /// How their values are stored.
    pub values: Store,
    /// Whether values are added to the terms before, or take their place.
    pub op: SparseOp,
    /// How positions are stored.
    pub layout: SparseLayout,
}

impl Default for SparseParams {
    fn default() -> Self {
        Self {
            select: Select::Fraction(0.005),
            values: Store::F16,
            op: SparseOp::Add,
            layout: SparseLayout::Smallest,
        }
    }
}

/// Which entries a `sparse` term keeps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// This share of the entries, the largest in magnitude.
    Fraction(f64),
    /// Entries further from the mean than this many standard deviations.
    Sigmas(f64),
    /// This share of the entries: those whose removal lowers the quantisation error of the
    /// `grouped` term before most.
    Error(f64),
    /// Every entry that is not zero: for pruned weights.
    Nonzero,
}

/// What the values of a `sparse` term do to the sum of the terms before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparseOp {
    /// They are added to it.
    #[default]
    Add,
    /// They take its place.
    Replace,
}

/// How the positions of a `sparse` term are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparseLayout {
    /// Whichever of the two takes fewer bytes.
    #[default]
    Smallest,
    /// Column indices row by row.
    Csr,
    /// One bit an element.
    Bitmap,
}

/// Parameters of a `low_rank` term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LowRankParams {
    /// Rank, cut to the smaller side of the matrix.
    pub rank: u32,
    /// How both factors are stored.
    pub factors: Store,
    /// Rounds of quantising the terms before again, each time without what this term holds.
    pub alternations: u32,
    /// Power iterations for large matrices; more separate singular values that lie close together.
    pub power_iterations: u32,
}

impl Default for LowRankParams {
    fn default() -> Self {
        Self { rank: 16, factors: Store::F16, alternations: 0, power_iterations: 6 }
    }
}

/// Parameters of a `codebook` term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodebookParams {
    /// Bits of a code, 1 to 16.
    pub bits: u8,
    /// Number of codebooks that are summed.
    pub codebooks: u8,
    /// Rows of a vector.
    pub vector_rows: u32,
    /// Columns of a vector.
    pub vector_cols: u32,
    /// Whether vectors have a scale.
    pub scaled: bool,
    /// How scales are stored.
    pub scale: Store,
    /// Columns that share a scale, a multiple of `vector_cols`; 0 is all columns.
    pub scale_cols: u32,
    /// How the codebooks are stored.
    pub entries: Store,
    /// Candidates kept while codes are searched; 1 is greedy.
    pub beam: u32,
    /// Rounds of codes for the codebooks, then codebooks for the codes.
    pub iterations: u32,
    /// Vectors that codebooks are trained on, for each entry of a codebook.
    pub samples_per_entry: u32,
    /// Seed of the sample and of the first entries.
    pub seed: u64,
}

impl Default for CodebookParams {
    fn default() -> Self {
        Self {
            bits: 8,
            codebooks: 2,
            vector_rows: 1,
            vector_cols: 4,
            scaled: true,
            scale: Store::F16,
            scale_cols: 0,
            entries: Store::F16,
            beam: 4,
            iterations: 12,
            samples_per_entry: 64,
            seed: 0,
        }
    }
}

/// Parameters of a `sign_low_rank` term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignLowRankParams {
    /// Planes, 1 to 16, each fitted to what those before it leave; in a progressive rule each is a
    /// level.
    pub planes: u32,
    /// Rank of the magnitude, cut to the smaller side of the matrix.
    pub rank: u32,
    /// How both factors are stored.
    pub factors: Store,
    /// Power iterations for large matrices.
    pub power_iterations: u32,
}

impl Default for SignLowRankParams {
    fn default() -> Self {
        Self { planes: 1, rank: 16, factors: Store::F16, power_iterations: 3 }
    }
}

/// Parameters of a `nested` term.
///
/// ```
/// use cmf_converters::encode::{NestedMap, NestedParams};
///
/// let params: NestedParams = toml::from_str("bits = [2, 4, 6]\nmap = \"integer\"")?;
/// assert_eq!((params.bits.len(), params.map), (3, NestedMap::Integer));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NestedParams {
    /// Bits of the codes of each level, 1 to 8, ascending; in a progressive rule each is a level.
    pub bits: Vec<u8>,
    /// What the codes of a level mean.
    pub map: NestedMap,
    /// How tables are stored, for [`NestedMap::Table`].
    pub table: Store,
    /// Columns of a group, for [`NestedMap::Integer`]; 0 is all columns.
    pub group_cols: u32,
    /// How scales are stored, for [`NestedMap::Integer`].
    pub scale: Store,
    /// How zero points are stored, for [`NestedMap::Integer`].
    pub zero: Store,
    /// Most rounds of codes for the grids, then grids for the codes, for [`NestedMap::Integer`].
    pub iterations: u32,
}

impl Default for NestedParams {
    fn default() -> Self {
        Self {
            bits: vec![2, 3, 4, 5, 6],
            map: NestedMap::Table,
            table: Store::F16,
            group_cols: 0,
            scale: Store::F16,
            zero: Store::F16,
            iterations: 8,
        }
    }
}

/// What the codes of a level of a `nested` term mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NestedMap {
    /// Entries of a table that each row and level has.
    #[default]
    Table,
    /// `(code - zero) * scale`, with both for each group and level.
    Integer,
}
