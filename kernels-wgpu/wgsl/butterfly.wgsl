// One round of Hadamard butterflies that are too far apart for workgroup memory, in place.
struct Params {
  size: u32,
  distance: u32,
  batch: u32,
  at: u32,
  stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(${WIDTH})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= p.size / 2u || id.y >= p.batch { return; }
  let h = p.distance;
  let at = p.at + id.y * p.stride + (id.x & ~(h - 1u)) * 2u + (id.x & (h - 1u));
  let a = v[at];
  let b = v[at + h];
  v[at] = a + b;
  v[at + h] = a - b;
}
