// post * H(pre * x[indices]), element by element, for each activation: what a list of transforms comes
// to (spec: transforms). H is Hadamard blocks of up to SPAN elements in workgroup memory. The result is
// plain, or laid out for `multiply`: tiles of `tile` activations, zero from `size` to `padded` and for
// activations that fill up the last tile.
#import transform_params
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> indices: array<u32>;
@group(0) @binding(4) var<storage, read> pre: array<f32>;
@group(0) @binding(5) var<storage, read> post: array<f32>;
var<workgroup> v: array<f32, ${SPAN}>;

fn store(activation: u32, i: u32, value: f32) {
  if p.tile == 0u {
    if activation < p.batch { out[p.out_at + activation * p.out_stride + i] = value; }
  } else {
    let tile = activation / p.tile;
    out[p.out_at + (tile * p.out_stride + i) * p.tile + activation % p.tile] = value;
  }
}

@compute @workgroup_size(${WIDTH})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let activation = group.y;
  let start = group.x * p.span;
  let count = min(p.span, p.size - min(start, p.size));
  for (var i = thread; i < count; i += ${WIDTH}u) {
    var from_ = start + i;
    if (p.uses & 1u) != 0u { from_ = min(indices[from_], p.size - 1u); }
    var value = 0.0;
    if activation < p.batch { value = x[p.in_at + activation * p.in_stride + from_]; }
    if (p.uses & 2u) != 0u { value *= pre[start + i]; }
    v[i] = value;
  }
  for (var h = 1u; h < p.block; h <<= 1u) {
    workgroupBarrier();
    for (var i = thread; i < count / 2u; i += ${WIDTH}u) {
      let at = (i & ~(h - 1u)) * 2u + (i & (h - 1u));
      let a = v[at];
      let b = v[at + h];
      v[at] = a + b;
      v[at + h] = a - b;
    }
  }
  workgroupBarrier();
  for (var i = thread; i < count; i += ${WIDTH}u) {
    var value = v[i];
    if (p.uses & 8u) != 0u { value *= p.factor; }
    if (p.uses & 4u) != 0u { value *= post[start + i]; }
    store(activation, start + i, value);
  }
  if p.tile != 0u && start + count == p.size {
    for (var i = p.size + thread; i < p.padded; i += ${WIDTH}u) { store(activation, i, 0.0); }
  }
}
