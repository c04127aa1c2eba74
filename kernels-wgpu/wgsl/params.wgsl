// What a dispatch over terms is told. Mirrored by `Params` and `TermParams` in src/params.rs.
struct Term {
  row_words: u32,
  group_rows: u32,
  group_cols: u32,
  scale_at: u32,
  scale_row_stride: u32,
  scale_col_stride: u32,
  zero_at: u32,
  zero_row_stride: u32,
  zero_col_stride: u32,
  table_at: u32,
  table_row_stride: u32,
  a: u32,
  b: u32,
  c: u32,
  d: u32,
  e: u32,
}

struct Params {
  // Of the terms, which all cover the same region of the matrix.
  rows: u32,
  cols: u32,
  first_row: u32,
  first_col: u32,
  // Bit t is set if term t takes part.
  terms_held: u32,
  // Steps of a row.
  steps: u32,
  // Whether the result is added to what is there.
  accumulates: u32,
  // Activations of the batch, or rows to be decoded.
  batch: u32,
  // Of the result, in elements.
  out_at: u32,
  out_stride: u32,
  // Of the activations, in vec4<f32>.
  x_tile: u32,
  // Of the row numbers, in elements; or the first row to be decoded.
  ids_at: u32,
  // Whether row numbers come from `ids`.
  gathers: u32,
  unused0: u32,
  unused1: u32,
  unused2: u32,
  terms: array<Term, ${TERMS * LEVELS}>,
}

@group(0) @binding(0) var<uniform> p: Params;
#for t in 0..TERMS
#if WIDE == 1
@group(0) @binding(${3 + 2 * t}) var<storage, read> codes${t}: array<vec2<u64>>;
#end
#if WIDE == 0 && VEC == 1
@group(0) @binding(${3 + 2 * t}) var<storage, read> codes${t}: array<vec4<u32>>;
#end
#if WIDE == 0 && VEC == 0
@group(0) @binding(${3 + 2 * t}) var<storage, read> codes${t}: array<u32>;
#end
@group(0) @binding(${4 + 2 * t}) var<storage, read> side${t}: array<u32>;
#end
