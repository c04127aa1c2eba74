// sparse (spec: encodings/sparse). LAYOUT: 1 csr, 2 bitmap, 3 n_m. MULTIPLY: 1 adds the product with
// activations to `out`, a thread for each row and activation; 0 adds the row to `out`, or, with
// REPLACES, puts the listed values there; a thread for each row.
// term.a: stored blocks, b: where the columns or positions begin in `codes`, c and d: rows and columns
// of a block, e: blocks across, or columns of a group of n_m; zero_at: codes of a row of n_m, its
// columns of a group kept in zero_row_stride, their bits in zero_col_stride; SCALE: kind of the values.
#import params
#if MULTIPLY == 1
@group(0) @binding(1) var<storage, read> x: array<f32>;
#else
@group(0) @binding(1) var<storage, read> ids: array<u32>;
#end
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
#import numbers

@compute @workgroup_size(${WIDTH})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let term = p.terms[0];
#if MULTIPLY == 1
  let row = id.x;
  let activation = id.y;
  if row >= p.rows || activation >= p.batch { return; }
  let base = (activation / ${M}u) * p.x_tile * 4u + activation % ${M}u + p.first_col * ${M}u;
  let at = p.out_at + activation * p.out_stride + p.first_row + row;
  var sum = 0.0;
#else
  let item = id.x;
  if item >= p.batch { return; }
  var row_of_matrix = p.ids_at + item;
  if p.gathers != 0u { row_of_matrix = ids[row_of_matrix]; }
  if row_of_matrix < p.first_row || row_of_matrix - p.first_row >= p.rows { return; }
  let row = row_of_matrix - p.first_row;
  let at = p.out_at + item * p.out_stride + p.first_col;
#end
#if LAYOUT == 3
  let words = term.b + row * term.row_words;
  for (var k = 0u; k < term.zero_at; k++) {
    let bit = k * term.zero_col_stride;
    let low = codes0[words + (bit >> 5u)] >> (bit & 31u);
    let high = (codes0[words + (bit >> 5u) + 1u] << 1u) << (31u - (bit & 31u));
    let position = (low | high) & ((1u << term.zero_col_stride) - 1u);
    let column = (k / term.zero_row_stride) * term.e + position;
    if column < p.cols && position < term.e {
      let value = scale0(term.scale_at + row * term.zero_at + k);
#if MULTIPLY == 1
      sum += value * x[base + column * ${M}u];
#else
#if REPLACES == 1
      out[at + column] = value;
#else
      out[at + column] += value;
#end
#end
    }
  }
#else
  let down = row / term.c;
  let row_of_block = row - down * term.c;
  let end = min(codes0[down + 1u], term.a);
  var entry = min(codes0[down], end);
#if LAYOUT == 2
  let bits = term.b + down * term.row_words;
  for (var word = 0u; word < term.row_words; word++) {
    var left = codes0[bits + word];
    while left != 0u && entry < end {
      let block = word * 32u + countTrailingZeros(left);
      left &= left - 1u;
#else
    while entry < end {
#if INDEX_BITS == 16
      let block = (codes0[term.b + (entry >> 1u)] >> ((entry & 1u) * 16u)) & 0xFFFFu;
#else
      let block = codes0[term.b + entry];
#end
#end
      for (var c = 0u; c < term.d; c++) {
        let column = block * term.d + c;
        if block < term.e && column < p.cols {
          let value = scale0(term.scale_at + (entry * term.c + row_of_block) * term.d + c);
#if MULTIPLY == 1
          sum += value * x[base + column * ${M}u];
#else
#if REPLACES == 1
          out[at + column] = value;
#else
          out[at + column] += value;
#end
#end
        }
      }
      entry++;
    }
#if LAYOUT == 2
  }
#end
#end
#if MULTIPLY == 1
  out[at] += sum;
#end
}
