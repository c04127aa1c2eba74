// post * factor * pre * x for each activation, laid out for `multiply`: tiles of M activations, each
// element's next to each other, zero from `size` to `padded` and for activations that fill up the last tile.
// A thread has four elements of four activations, or of one if M is 1. VEC: 1 if all that is read begins
// at a multiple of four elements.
#import transform_params
#let PARTS = (M + 3) / 4
#let EACH = 4
#if M == 1
#let EACH = 1
#end
#if VEC == 1
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> pre: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> post: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> pre: array<f32>;
@group(0) @binding(4) var<storage, read> post: array<f32>;
#end
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(${WIDTH})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = group.x * ${WIDTH}u + thread;
  let quad = number / ${PARTS}u;
  let part = number % ${PARTS}u;
  if quad >= p.padded / 4u { return; }
#for m in 0..EACH
  var v${m} = vec4<f32>(0.0);
#end
#if VEC == 1
  if quad < p.size / 4u {
#for m in 0..EACH
    let activation${m} = group.y * ${M}u + part * 4u + ${m}u;
    if activation${m} < p.batch { v${m} = x[(p.in_at + activation${m} * p.in_stride) / 4u + quad]; }
#end
    if (p.uses & 2u) != 0u {
#for m in 0..EACH
      v${m} *= pre[quad];
#end
    }
    if (p.uses & 8u) != 0u {
#for m in 0..EACH
      v${m} *= p.factor;
#end
    }
    if (p.uses & 4u) != 0u {
#for m in 0..EACH
      v${m} *= post[quad];
#end
    }
  }
#else
#for i in 0..4
  if quad * 4u + ${i}u < p.size {
    let i = quad * 4u + ${i}u;
#for m in 0..EACH
    let activation${m} = group.y * ${M}u + part * 4u + ${m}u;
    var value${m} = 0.0;
    if activation${m} < p.batch { value${m} = x[p.in_at + activation${m} * p.in_stride + i]; }
    if (p.uses & 2u) != 0u { value${m} *= pre[i]; }
    if (p.uses & 8u) != 0u { value${m} *= p.factor; }
    if (p.uses & 4u) != 0u { value${m} *= post[i]; }
    v${m}.${xyzw[i]} = value${m};
#end
  }
#end
#end
#if M == 1
  out[group.y * (p.padded / 4u) + quad] = v0;
#else
  let at = (group.y * p.padded + quad * 4u) * ${PARTS}u + part;
#for i in 0..4
  out[at + ${i * PARTS}u] = vec4<f32>(v0.${xyzw[i]}, v1.${xyzw[i]}, v2.${xyzw[i]}, v3.${xyzw[i]});
#end
#end
}
