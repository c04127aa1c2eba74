//! The uniforms of the kernels, field by field as in `wgsl/`: `tests/shaders.rs` compares them.

use bytemuck::{Pod, Zeroable};

/// `Term` of `params.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TermParams {
    pub(crate) row_words: u32,
    pub(crate) group_rows: u32,
    pub(crate) group_cols: u32,
    pub(crate) scale_at: u32,
    pub(crate) scale_row_stride: u32,
    pub(crate) scale_col_stride: u32,
    pub(crate) zero_at: u32,
    pub(crate) zero_row_stride: u32,
    pub(crate) zero_col_stride: u32,
    pub(crate) table_at: u32,
    pub(crate) table_row_stride: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    pub(crate) d: u32,
    pub(crate) e: u32,
}

/// `Params` of `params.wgsl`, without its terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) first_row: u32,
    pub(crate) first_col: u32,
    pub(crate) terms_held: u32,
    pub(crate) steps: u32,
    pub(crate) accumulates: u32,
    pub(crate) batch: u32,
    pub(crate) out_at: u32,
    pub(crate) out_stride: u32,
    pub(crate) x_tile: u32,
    pub(crate) ids_at: u32,
    pub(crate) gathers: u32,
    pub(crate) unused0: u32,
    pub(crate) unused1: u32,
    pub(crate) unused2: u32,
}

/// `Params` of `transform_params.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TransformParams {
    pub(crate) size: u32,
    pub(crate) padded: u32,
    pub(crate) block: u32,
    pub(crate) factor: f32,
    pub(crate) uses: u32,
    pub(crate) batch: u32,
    pub(crate) in_at: u32,
    pub(crate) in_stride: u32,
    pub(crate) out_at: u32,
    pub(crate) out_stride: u32,
    pub(crate) tile: u32,
    pub(crate) span: u32,
}

/// `Params` of `butterfly.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ButterflyParams {
    pub(crate) size: u32,
    pub(crate) distance: u32,
    pub(crate) batch: u32,
    pub(crate) at: u32,
    pub(crate) stride: u32,
}

/// `Params` of `fill.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FillParams {
    pub(crate) count: u32,
    pub(crate) batch: u32,
    pub(crate) at: u32,
    pub(crate) stride: u32,
}

/// `Params` of `outer.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct OuterParams {
    pub(crate) cols: u32,
    pub(crate) rank: u32,
    pub(crate) batch: u32,
    pub(crate) out_at: u32,
    pub(crate) out_stride: u32,
    pub(crate) accumulates: u32,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) ids_at: u32,
    pub(crate) gathers: u32,
}
