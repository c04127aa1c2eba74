//! The table of encodings and what each must offer.
//!
//! An encoding is a module with `ID`, `NAME`, `VERSION`, a `Descriptor` that parses from a
//! [`Shape`], a `View` that decodes, and `pack` functions that build [`crate::NodeData`]. The table
//! at `encodings!` is the only place that lists them.

pub mod codebook;
pub mod dense;
pub mod grouped;
mod keep;
pub mod lossless;
pub mod low_rank;
pub mod nested;
pub mod sign_low_rank;
pub mod sparse;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod trellis;

pub use keep::KeepBudget;

use crate::error::{Error, ErrorKind, Result};
use core::ops::Range;
use std::borrow::Cow;

/// What the directory says of a node, without any payload.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Rows of the node.
    pub rows: u64,
    /// Columns of the node.
    pub cols: u64,
    /// Descriptor bytes.
    pub descriptor: &'a [u8],
    /// Decoded length of each segment.
    pub segments: &'a [u64],
    /// `(rows, cols)` of each child.
    pub children: &'a [(u64, u64)],
}

/// A node with its segments' bytes and opened children.
#[derive(Debug)]
pub struct RawNode<'a> {
    /// Encoding id.
    pub encoding: u32,
    /// Version of the encoding.
    pub version: u16,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Descriptor bytes.
    pub descriptor: &'a [u8],
    /// Decoded bytes of each segment.
    pub segments: Vec<Cow<'a, [u8]>>,
    /// Opened children.
    pub children: Vec<View<'a>>,
    /// What the node may keep decoded between reads.
    pub keep: KeepBudget,
}

impl RawNode<'_> {
    /// Parses the descriptor with `parse`, giving it the node's [`Shape`].
    pub(crate) fn check<D>(&self, parse: impl FnOnce(&Shape<'_>) -> Result<D>) -> Result<D> {
        let segments: Vec<u64> = self.segments.iter().map(|s| s.len() as u64).collect();
        let children: Vec<_> = self.children.iter().map(|c| (c.rows() as u64, c.cols() as u64)).collect();
        parse(&Shape {
            rows: self.rows,
            cols: self.cols,
            descriptor: self.descriptor,
            segments: &segments,
            children: &children,
        })
    }
}

macro_rules! encodings {
    ($($module:ident $variant:ident;)*) => {
        /// An opened node: decodes any range of its rows.
        #[derive(Debug)]
        pub enum View<'a> {
            $(#[doc = concat!("See [`", stringify!($module), "`].")] $variant($module::View<'a>),)*
        }

        impl<'a> View<'a> {
            /// Opens a node.
            ///
            /// # Errors
            /// `Unsupported` for an unknown encoding or version, `Structure` for a descriptor,
            /// segments or children that do not fit together.
            pub fn open(raw: RawNode<'a>) -> Result<Self> {
                match (raw.encoding, raw.version) {
                    $(($module::ID, $module::VERSION) => $module::View::new(raw)
                        .map(View::$variant)
                        .map_err(|e| e.within($module::NAME)),)*
                    (id, version) => Err(unknown(id, version)),
                }
            }

            /// Rows of the node.
            pub fn rows(&self) -> usize {
                match self { $(View::$variant(view) => view.rows(),)* }
            }

            /// Columns of the node.
            pub fn cols(&self) -> usize {
                match self { $(View::$variant(view) => view.cols(),)* }
            }

            /// Decodes rows `rows` into `out`, row-major: the reference decode of the spec.
            ///
            /// # Errors
            /// `Argument` when `rows` is out of range or `out` is not `rows.len() * cols` long,
            /// `Value` when the payload breaks a rule of the encoding.
            pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
                check_rows(self.rows(), self.cols(), &rows, out.len())?;
                match self { $(View::$variant(view) => view
                    .decode_rows(rows, out)
                    .map_err(|e| e.within($module::NAME)),)* }
            }

            /// Checks every rule that the payload must keep: padding, indices, frames.
            ///
            /// # Errors
            /// `Value` at the first breach.
            pub fn verify(&self) -> Result<()> {
                match self { $(View::$variant(view) => view
                    .verify()
                    .map_err(|e| e.within($module::NAME)),)* }
            }
        }

        /// Checks a node of a known encoding against its descriptor; `None` when the encoding or
        /// its version is unknown.
        pub fn check(encoding: u32, version: u16, shape: &Shape<'_>) -> Option<Result<()>> {
            match (encoding, version) {
                $(($module::ID, $module::VERSION) => Some($module::Descriptor::parse(shape)
                    .map(drop)
                    .map_err(|e| e.within($module::NAME))),)*
                _ => None,
            }
        }

        /// Name of an encoding; `None` when the id is unknown.
        pub fn name(encoding: u32) -> Option<&'static str> {
            match encoding { $($module::ID => Some($module::NAME),)* _ => None }
        }

        /// Id, version and name of every encoding of this edition.
        pub const TABLE: &[(u32, u16, &str)] = &[$(($module::ID, $module::VERSION, $module::NAME),)*];
    };
}

encodings! {
    dense Dense;
    grouped Grouped;
    sparse Sparse;
    low_rank LowRank;
    codebook Codebook;
    lossless Lossless;
    trellis Trellis;
    sign_low_rank SignLowRank;
    nested Nested;
}

/// The error for an encoding that this reader does not know.
pub fn unknown(encoding: u32, version: u16) -> Error {
    match name(encoding) {
        Some(name) => Error::new(
            ErrorKind::Unsupported,
            name,
            format!("version {version} of this encoding is unknown to this reader"),
        ),
        None => {
            Error::new(ErrorKind::Unsupported, "encoding", format!("id {encoding} is unknown to this reader"))
        }
    }
}

impl View<'_> {
    /// Whether some rows decode in about their share of the time that all rows together take.
    pub(crate) fn decodes_in_parts(&self) -> bool {
        match self {
            View::LowRank(view) => view.is_ready(),
            View::SignLowRank(view) => view.magnitude().is_ready(),
            _ => true,
        }
    }

    /// Adds rows `rows` to `out`, whose rows are `stride` apart and start `column` in.
    ///
    /// A `sparse` node that replaces touches only the positions that it lists.
    ///
    /// # Errors
    /// As [`View::decode_rows`].
    pub(crate) fn add_rows(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        stride: usize,
        column: usize,
        scratch: &mut Vec<f32>,
    ) -> Result<()> {
        let cols = self.cols();
        if cols == 0 {
            return Ok(());
        }
        if let View::Sparse(view) = self {
            check_rows(self.rows(), cols, &rows, rows.len().saturating_mul(cols))?;
            return view.add_rows(rows, out, stride, column, scratch).map_err(|e| e.within(sparse::NAME));
        }
        scratch.clear();
        scratch.resize(rows.len().saturating_mul(cols), 0.0);
        self.decode_rows(rows, scratch)?;
        for (values, out) in scratch.chunks_exact(cols).zip(out.chunks_mut(stride)) {
            for (sum, value) in out.iter_mut().skip(column).zip(values) {
                *sum += value;
            }
        }
        Ok(())
    }
}

fn check_rows(all: usize, cols: usize, rows: &Range<usize>, out: usize) -> Result<()> {
    if rows.start > rows.end || rows.end > all {
        return Err(Error::expected(
            ErrorKind::Argument,
            "rows",
            format_args!("a range within 0..{all}"),
            format_args!("{}..{}", rows.start, rows.end),
        ));
    }
    let needed = rows.len().saturating_mul(cols);
    if out != needed {
        return Err(Error::expected(ErrorKind::Argument, "out", format_args!("{needed} values"), out));
    }
    Ok(())
}

/// A `Structure` error.
pub(crate) fn structure(part: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Structure, part, problem)
}

/// A `Value` error.
pub(crate) fn value(part: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Value, part, problem)
}

/// Requires `found == expected`.
pub(crate) fn require<T: PartialEq + core::fmt::Display>(part: &str, expected: T, found: T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::expected(ErrorKind::Structure, part, expected, found))
}

/// Requires that the node has these many segments and children.
pub(crate) fn require_counts(shape: &Shape<'_>, segments: usize, children: usize) -> Result<()> {
    require("segment count", segments, shape.segments.len())?;
    require("child count", children, shape.children.len())
}

/// Requires segment `index` to have exactly `expected` bytes; `None` is an overflow.
pub(crate) fn require_segment(
    shape: &Shape<'_>,
    index: usize,
    part: &str,
    expected: Option<u64>,
) -> Result<()> {
    let expected = expected.ok_or_else(|| structure(part, "size overflows 64 bits"))?;
    let found = shape.segments.get(index).copied().unwrap_or(0);
    if expected == found {
        return Ok(());
    }
    Err(Error::expected(ErrorKind::Structure, part, format_args!("{expected} bytes"), found))
}

/// Requires child `index` to be `[rows, cols]`, either extent broadcast from 1.
pub(crate) fn require_broadcast(
    shape: &Shape<'_>,
    index: usize,
    part: &str,
    rows: u64,
    cols: u64,
) -> Result<()> {
    let (r, c) = shape.children.get(index).copied().unwrap_or((0, 0));
    if (r == rows || r == 1) && (c == cols || c == 1) {
        return Ok(());
    }
    Err(Error::expected(
        ErrorKind::Structure,
        part,
        format_args!("[{rows} or 1, {cols} or 1]"),
        format_args!("[{r}, {c}]"),
    ))
}

/// Requires child `index` to be exactly `[rows, cols]`.
pub(crate) fn require_child(shape: &Shape<'_>, index: usize, part: &str, rows: u64, cols: u64) -> Result<()> {
    let (r, c) = shape.children.get(index).copied().unwrap_or((0, 0));
    if (r, c) == (rows, cols) {
        return Ok(());
    }
    Err(Error::expected(
        ErrorKind::Structure,
        part,
        format_args!("[{rows}, {cols}]"),
        format_args!("[{r}, {c}]"),
    ))
}

/// Reads a descriptor record of exactly the right size.
pub(crate) fn descriptor<T: bytemuck::Pod>(bytes: &[u8]) -> Result<T> {
    bytemuck::try_pod_read_unaligned(bytes).map_err(|_| {
        Error::expected(
            ErrorKind::Structure,
            "descriptor",
            format_args!("{} bytes", size_of::<T>()),
            bytes.len(),
        )
    })
}

/// A node extent as an index.
pub(crate) fn extent(part: &str, value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| structure(part, format!("{value} does not fit this machine")))
}
