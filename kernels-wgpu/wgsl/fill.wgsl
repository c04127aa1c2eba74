// Zero in `count` elements of each of `batch` rows.
struct Params {
  count: u32,
  batch: u32,
  at: u32,
  stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WIDTH})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x < p.count && id.y < p.batch { out[p.at + id.y * p.stride + id.x] = 0.0; }
}
