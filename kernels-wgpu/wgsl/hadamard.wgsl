// post * factor * H(pre * x), row by row: `transform` without indices, of whole rows of a multiple of four
// elements that begin at one. H is Hadamard blocks of 4 to SPAN elements, in workgroup memory: a thread has
// up to eight vectors, and makes three rounds of butterflies before it puts them back.
#import transform_params
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> pre: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> post: array<vec4<f32>>;
var<workgroup> v: array<vec4<f32>, ${SPAN / 4}>;

// ROUNDS rounds of vectors that are h, 2h, ... apart.
#def rounds
workgroupBarrier();
for (var i = thread; i < count / ${RADIX}u; i += ${WIDTH}u) {
  let at = (i & ~(h - 1u)) * ${RADIX}u + (i & (h - 1u));
#for k in 0..RADIX
  var a${k} = v[at + ${k}u * h];
#end
#let D = 1
#for e in 0..ROUNDS
#for k in 0..RADIX
#if k / D % 2 == 0
  let b${e}_${k} = a${k} - a${k + D};
  a${k} += a${k + D};
  a${k + D} = b${e}_${k};
#end
#end
#let D = D * 2
#end
#for k in 0..RADIX
  v[at + ${k}u * h] = a${k};
#end
}
h *= ${RADIX}u;
#end

@compute @workgroup_size(${WIDTH})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let start = group.x * (p.span / 4u);
  let count = min(p.span / 4u, p.size / 4u - min(start, p.size / 4u));
  let from_ = (p.in_at + group.y * p.in_stride) / 4u + start;
  let to = (p.out_at + group.y * p.out_stride) / 4u + start;
  for (var i = thread; i < count; i += ${WIDTH}u) {
    var a = x[from_ + i];
    if (p.uses & 2u) != 0u { a *= pre[start + i]; }
    a = vec4<f32>(a.x + a.y, a.x - a.y, a.z + a.w, a.z - a.w);
    v[i] = vec4<f32>(a.x + a.z, a.y + a.w, a.x - a.z, a.y - a.w);
  }
  let vectors = p.block / 4u;
  var h = 1u;
  while h * 8u <= vectors {
#let RADIX = 8
#let ROUNDS = 3
#use rounds
  }
  if h * 4u <= vectors {
#let RADIX = 4
#let ROUNDS = 2
#use rounds
  }
  if h * 2u <= vectors {
#let RADIX = 2
#let ROUNDS = 1
#use rounds
  }
  workgroupBarrier();
  for (var i = thread; i < count; i += ${WIDTH}u) {
    var a = v[i];
    if (p.uses & 8u) != 0u { a *= p.factor; }
    if (p.uses & 4u) != 0u { a *= post[start + i]; }
    out[to + i] = a;
  }
}
