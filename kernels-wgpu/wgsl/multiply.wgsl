// y (+)= x Sᵀ for the sum S of some terms. A thread has R rows and M activations; LANES threads share
// the columns, and each row has WIDTH / LANES neighbours in a workgroup.
// FUSED: the values of all terms are added up before they are multiplied, which many activations want;
// a step has four columns then.
// SUBGROUPS: 1 if threads of a subgroup add up or ask each other, which not every adapter has; a browser
// wants `enable subgroups;` before this text then. SUMS: subgroups of a workgroup at most, or its threads.
// WIDE: 1 if codes are read as integers of 64 bits, which not every adapter has and no browser: where threads
// read one by one, that is half as many reads.
// X_VECTORS: of the activations, if they are in a uniform buffer.
// SHARES: if not 0, threads of each subgroup, which read different activations and tell each other: where
// threads read one by one, a look then serves many products. With LANES 1 and SUBGROUPS 1.
// FACTOR: 0 none, 1 a row's values share one, 2 a row's values of a step do. It is `f` of the encoding.
// EAGER: 1 if a row of four columns is multiplied as soon as the encoding says that it has it: the rows of a
// tall tile do not fit into registers.
// TILES: tiles of activations of a thread, more than 1 only with M > 1 and SHARES.
// LOOK: quads of a step that a look at shared activations is for.
#let LOOK = 1
#if SHARES > M && SHARES / M <= QUADS
#let LOOK = SHARES / M
#end
#import params
#if X_VECTORS > 0
@group(0) @binding(1) var<uniform> x: array<vec4<f32>, ${X_VECTORS}>;
#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
#end
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
#import numbers
#def done
#if EAGER == 1
part${r} += dot(w${r}, xs);
#end
#end
// What is read once for as many steps as a look at shared activations is for, if it is for several.
#def outer
#end
#import ENCODING
// A look at the activations of as many quads as the threads of a subgroup have, from this one on.
#def look
#if q % LOOK == 0
#for l in 0..TILES
#for k in 0..(M + SHARES - 1) / SHARES
let seen${q}_${l}_${k} = x[tile${l} + (p.first_col + step * ${QUADS * 4}u + ${q * 4}u) * ${PARTS}u + ${k * SHARES}u + invocation];
#end
#end
#end
#end
// Adds the products of four columns, whose values are `w`.
#def add
#if SHARES == 0
#for i in 0..4
#for h in 0..PARTS
let x${i}_${h} = x[tile + (p.first_col + column + ${i}u) * ${PARTS}u + ${h}u];
#for r in 0..R
sum${r}_${h} += w${r}.${xyzw[i]} * x${i}_${h};
#end
#end
#end
#else
// Activation by activation: there are more sums than registers.
#for h in 0..PARTS * TILES
#for m in 0..4
#for i in 0..4
#let AT = q % LOOK * M + i * PARTS + h % PARTS
let x${i}_${h * 4 + m} = subgroupBroadcast(seen${q / LOOK * LOOK}_${h / PARTS}_${AT / SHARES}.${xyzw[m]}, ${AT % SHARES}u);
#end
#for r in 0..R
#for i in 0..4
sum${r}_${h}.${xyzw[m]} += w${r}.${xyzw[i]} * x${i}_${h * 4 + m};
#end
#end
#end
#end
#end
#end
#if LANES > 1
var<workgroup> shared_sums: array<f32, ${SUMS * R * M}>;
#end

@compute @workgroup_size(${WIDTH})
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
#if SUBGROUPS > 0
  @builtin(subgroup_invocation_id) invocation: u32,
#if LANES > 1
  @builtin(subgroup_id) subgroup: u32,
  @builtin(num_subgroups) subgroups: u32,
#end
#end
) {
#if LANES > 1
  let lane = thread;
  let row0 = (group.x + group.z * 65535u) * ${R}u;
#else
  let lane = 0u;
  let tile_row = ((group.x + group.z * 65535u) * ${WIDTH}u + thread) * ${R}u;
#if SUBGROUPS > 0
  // A thread without rows of its own does what the last one does: others ask it.
  let row0 = min(tile_row, (p.rows - 1u) / ${R}u * ${R}u);
#else
  let row0 = tile_row;
#end
#end
#if LANES > 1 || SUBGROUPS == 0
  if row0 >= p.rows { return; }
#end
#if TILES == 1
  let tile = group.y * p.x_tile;
  let tile0 = tile;
#else
  // One past the last does what that does, and is not written.
#for l in 0..TILES
  let tile${l} = min(group.y * ${TILES}u + ${l}u, (p.batch - 1u) / ${M}u) * p.x_tile;
#end
#end
#for r in 0..R
#for h in 0..PARTS * TILES
#if M == 1
  var sum${r}_${h} = 0.0;
#else
  var sum${r}_${h} = vec4<f32>(0.0);
#end
#end
#end
  let steps = p.steps;
#if FUSED == 1
#for t in 0..TERMS
  let here${t} = ((p.terms_held >> ${t}u) & 1u) != 0u;
#use begin
#end
  for (var step = lane; step < steps; step += ${LANES}u) {
    let column = step * 4u;
#for r in 0..R
    var total${r} = vec4<f32>(0.0);
#end
#for t in 0..TERMS
    if here${t} {
#use load
#use quad
#for r in 0..R
#if FACTOR == 0
      total${r} += w${r};
#else
      total${r} += w${r} * f${t}_${r};
#end
#end
    }
#end
#for r in 0..R
    let w${r} = total${r};
#end
#let q = 0
#if SHARES > 0
#use look
#end
#use add
  }
#else
#for t in 0..TERMS
  if ((p.terms_held >> ${t}u) & 1u) != 0u {
    let term = p.terms[${t}];
#use begin
#if M == 1 && FACTOR != 0
#for r in 0..R
    var part${r} = 0.0;
#end
#end
#if M == 1 && SHARES > 0
    let looks_at = tile + (p.first_col >> 2u) + invocation;
#end
#if M == 1 && SHARES > 0 && SHARES <= QUADS
    var seen = vec4<f32>(0.0);
#end
#if M == 1 && SHARES > QUADS
    // Loops end at their end: what a break leaves out, a processor that runs shaders may run for nothing. There is
    // at least one step.
    var step = 0u;
    loop {
      let seen = x[looks_at + step * ${QUADS}u];
#use outer
      let look_end = min(step + ${SHARES / QUADS}u, steps);
      loop {
#else
    for (var step = lane; step < steps; step += ${LANES}u) {
#end
#use load
#if M == 1 && FACTOR == 2
#for r in 0..R
      part${r} = 0.0;
#end
#end
#for q in 0..QUADS
#if SHARES > 0 && M > 1
#use look
#end
#if M == 1 && SHARES > 0 && SHARES <= QUADS
#if q % SHARES == 0
      seen = x[looks_at + step * ${QUADS}u + ${q}u];
#end
#end
      {
        let column = step * ${QUADS * 4}u + ${q * 4}u;
#if M == 1 && SHARES == 0
        let xs = x[tile + ((p.first_col + column) >> 2u)];
#end
#if M == 1 && SHARES > 0 && SHARES <= QUADS
#let FROM = q % SHARES
        let xs = vec4<f32>(subgroupBroadcast(seen.x, ${FROM}u), subgroupBroadcast(seen.y, ${FROM}u), subgroupBroadcast(seen.z, ${FROM}u), subgroupBroadcast(seen.w, ${FROM}u));
#end
#if M == 1 && SHARES > QUADS
        let from_ = (step * ${QUADS}u + ${q}u) % ${SHARES}u;
        let xs = vec4<f32>(subgroupShuffle(seen.x, from_), subgroupShuffle(seen.y, from_), subgroupShuffle(seen.z, from_), subgroupShuffle(seen.w, from_));
#end
#use quad
#if TAIL == 1
        let inside = (vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(p.cols);
#for r in 0..R
        w${r} = select(vec4<f32>(0.0), w${r}, inside);
#end
#end
#if M == 1
#for r in 0..R
#if FACTOR == 0
        sum${r}_0 += dot(w${r}, xs);
#end
#if FACTOR != 0 && EAGER == 0
        part${r} += dot(w${r}, xs);
#end
#end
#else
#if FACTOR != 0
#for r in 0..R
        w${r} *= factor${r};
#end
#end
#use add
#end
      }
#end
#if M == 1 && FACTOR == 2
#for r in 0..R
      sum${r}_0 += part${r} * factor${r};
#end
#end
#if M == 1 && SHARES > QUADS
        step++;
        if step == look_end { break; }
      }
      if step == steps { break; }
#end
    }
#if M == 1 && FACTOR == 1
#for r in 0..R
#if LUT >= 3
    sum${r}_0 += (part${r} * 0x1p-24f) * factor${r};
#else
    sum${r}_0 += part${r} * factor${r};
#end
#end
#end
  }
#end
#end
#if LANES > 1
#if SUBGROUPS > 0
#for r in 0..R
#for h in 0..PARTS
  sum${r}_${h} = subgroupAdd(sum${r}_${h});
#end
#end
  let place = subgroup * ${R * M}u;
  let sums = subgroups;
  if invocation == 0u {
#else
  let place = thread * ${R * M}u;
  let sums = ${LANES}u;
  {
#end
#for r in 0..R
#for m in 0..M
#if M == 1
    shared_sums[place + ${r * M + m}u] = sum${r}_0;
#else
    shared_sums[place + ${r * M + m}u] = sum${r}_${m / 4}.${xyzw[m % 4]};
#end
#end
#end
  }
  workgroupBarrier();
  for (var i = thread; i < ${R * M}u; i += ${WIDTH}u) {
    var value = 0.0;
    for (var l = 0u; l < sums; l++) { value += shared_sums[l * ${R * M}u + i]; }
    let row = row0 + i / ${M}u;
    let activation = group.y * ${M}u + i % ${M}u;
    if row < p.rows && activation < p.batch {
      let at = p.out_at + activation * p.out_stride + p.first_row + row;
      if p.accumulates != 0u { value += y[at]; }
      y[at] = value;
    }
  }
#else
#if SUBGROUPS > 0
  if row0 != tile_row { return; }
#end
#for m in 0..M * TILES
  if group.y * ${M * TILES}u + ${m}u < p.batch {
    let at = p.out_at + (group.y * ${M * TILES}u + ${m}u) * p.out_stride + p.first_row + row0;
#for r in 0..R
    if row0 + ${r}u < p.rows {
#if M == 1
      var value = sum${r}_0;
#else
      var value = sum${r}_${m / 4}.${xyzw[m % 4]};
#end
      if p.accumulates != 0u { value += y[at + ${r}u]; }
      y[at + ${r}u] = value;
    }
#end
  }
#end
#end
}
