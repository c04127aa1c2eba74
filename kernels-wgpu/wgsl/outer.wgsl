// out (+)= a b for a of `batch` by `rank` and b of `rank` by `cols`: rows of a low_rank term.
struct Params {
  cols: u32,
  rank: u32,
  batch: u32,
  out_at: u32,
  out_stride: u32,
  accumulates: u32,
  // Rows of the matrix that the term has; others of those asked for stay as they are.
  first_row: u32,
  rows: u32,
  ids_at: u32,
  gathers: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;

@compute @workgroup_size(${WIDTH})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let column = id.x;
  let item = id.y + id.z * 65535u;
  if column >= p.cols || item >= p.batch { return; }
  var row = p.ids_at + item;
  if p.gathers != 0u { row = ids[row]; }
  if row < p.first_row || row - p.first_row >= p.rows { return; }
  var sum = 0.0;
  for (var k = 0u; k < p.rank; k++) { sum += a[item * p.rank + k] * b[k * p.cols + column]; }
  let at = p.out_at + item * p.out_stride + column;
  if p.accumulates != 0u { sum += out[at]; }
  out[at] = sum;
}
