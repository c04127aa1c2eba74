// trellis (spec: encodings/trellis). STATE: bits of a window, STEP: bits of a weight, CODE: 0 table,
// 1 byte sum. WAY: 0 any shape, window by window; 1 down the columns and 2 along the rows, where each
// ring is a whole number of words and no tile of rows (1) or columns (2) goes over a path's end.
// FUSED: whether the names of all terms are in one scope.
// GROUP: 0 one scale for each row, 3 scales by column.
// OWN: words of a path that a tile of rows fills, where it begins at one; the window of its first row
// begins in the word before. 0 where tiles are shorter than words.
// ASKS: 1 if a thread asks the one before it for the last word of its tile, which is the first that it needs.
// 2 if each column is one path, so that all but the first thread can: those of a subgroup read the word of the
// first for each other, a step each.
// LUT: where the table is read: 0 beside the codes, 1 in a uniform buffer, 2 in workgroup memory, 3 in a
// uniform buffer whose entries have the values of AT_ONCE rows, signed bytes, by the JOINT bits of their
// windows, 4 in the threads of a subgroup: 64 signed bytes, by the newest 6 bits of a window and what a
// linear map makes of those before. A row's values are 2^24 times as large with 3, if M is 1 and they share a
// factor, and with 4. ENTRIES: of the table. MAPPED: bits that are mapped at a time, 3 or a step's.
// term.a: weights of a path, b: words of a path, c: multiplier, d: addend, e: extent of the axis.
#if LUT == 1
#for t in 0..TERMS
@group(0) @binding(${3 + 2 * TERMS + t}) var<uniform> lut${t}: array<vec4<f32>, ${ENTRIES / 4}>;
#end
#end
#if LUT >= 3
#for t in 0..TERMS
@group(0) @binding(${3 + 2 * TERMS + t}) var<uniform> lut${t}: array<vec4<u32>, ${ENTRIES / 4}>;
#end
#end
#if LUT == 2
var<workgroup> lut: array<f32, ${ENTRIES}>;
#end
#if WAY == 1
// Words of four columns.
#for t in 0..TERMS
fn words${t}(at: u32) -> vec4<u32> {
#if WIDE == 1
  let pairs = codes${t}[at];
  return vec4<u32>(u32(pairs.x), u32(pairs.x >> 32u), u32(pairs.y), u32(pairs.y >> 32u));
#else
  return codes${t}[at];
#end
}
#end
#end

fn window_value(window: u32, multiplier: u32, addend: u32) -> f32 {
  let x = window * multiplier + addend;
  let pairs = (x & 0x00FF00FFu) + ((x >> 8u) & 0x00FF00FFu);
  return f32(i32((pairs & 0xFFFFu) + (pairs >> 16u)) - 510);
}

#if WAY == 0
#for t in 0..TERMS
fn window${t}(row: u32, column: u32) -> u32 {
  let term = p.terms[${t}];
#if ALONG == 1
  let along = column;
#else
  let along = row;
#end
  let path = along / term.a;
  let elems = min(term.a, term.e - path * term.a);
  let ring = elems * ${STEP}u;
#if ALONG == 1
  let base = row * term.row_words + path * term.b;
  let stride = 1u;
#else
  let base = path * term.b * p.cols + column;
  let stride = p.cols;
#end
  let turns = ((${STATE}u + ring - 1u) / ring) * ring;
  var bit = ((along - path * term.a + 1u) * ${STEP}u + turns - ${STATE}u) % ring;
  var window = 0u;
  var at = 0u;
  while at < ${STATE}u {
    let shift = bit & 31u;
    let bits = min(min(${STATE}u - at, 32u - shift), ring - bit);
    window |= ((codes${t}[base + (bit >> 5u) * stride] >> shift) & ((1u << bits) - 1u)) << at;
    at += bits;
    bit += bits;
    if bit >= ring { bit = 0u; }
  }
  return window;
}
#end
#end

#def begin
let term${t} = p.terms[${t}];
#if LUT == 4
// Thread i has values i, i + 8, ..., i bits further than a rotation by 8 bits for each would be, and what the
// map makes of MAPPED bits i, for four places of a window.
let own_values = lut${t}[invocation & 7u];
let low_values${t} = own_values.x;
let high_values${t} = own_values.y;
let map${t}_0 = own_values.z;
let map${t}_1 = own_values.w;
#end
#if LUT == 2
// Not before all have read the term before.
workgroupBarrier();
for (var i = lane; i < ${ENTRIES}u; i += ${LANES}u) { lut[i] = table${t}(term${t}.table_at + i); }
workgroupBarrier();
#end
#for r in 0..R
let row${t}_${r} = min(row0 + ${r}u, p.rows - 1u);
let group_row${t}_${r} = select(row${t}_${r} / max(term${t}.group_rows, 1u), 0u, term${t}.group_rows == 0u);
let scale_at${t}_${r} = term${t}.scale_at + group_row${t}_${r} * term${t}.scale_row_stride;
#if GROUP == 0
#if FUSED == 1
let f${t}_${r} = scale${t}(scale_at${t}_${r});
#else
let factor${r} = scale${t}(scale_at${t}_${r});
#end
#end
#end
#if WAY == 1 && OWN > 0
#if ASKS == 1
let row_before${t} = subgroupShuffleUp(row0, 1u);
#end
let path${t} = row0 / term${t}.a;
let path_words${t} = min(term${t}.a, term${t}.e - path${t} * term${t}.a) * ${STEP}u / 32u;
let own${t} = (row0 - path${t} * term${t}.a) * ${STEP}u / 32u;
let at${t}_0 = (path${t} * term${t}.b + select(own${t}, path_words${t}, own${t} == 0u) - 1u) * (p.cols >> 2u);
#for i in 0..OWN
let at${t}_${i + 1} = (path${t} * term${t}.b + min(own${t} + ${i}u, path_words${t} - 1u)) * (p.cols >> 2u);
#end
#if ASKS == 1
let asks${t} = invocation > 0u && own${t} > 0u && row_before${t} + ${R}u == row0;
#end
#if ASKS == 2
let first_at${t} = subgroupBroadcast(at${t}_0, 0u);
#end
#end
#if WAY == 1 && OWN == 0
let path${t} = row0 / term${t}.a;
let ring${t} = min(term${t}.a, term${t}.e - path${t} * term${t}.a) * ${STEP}u;
let path_words${t} = path${t} * term${t}.b;
#for s in 0..SPLITS
let before${t}_${s} = (row0 - path${t} * term${t}.a + 1u + ${s * SPLIT}u) * ${STEP}u;
let bit${t}_${s} = select(before${t}_${s} - ${STATE}u, before${t}_${s} + ring${t} - ${STATE}u, before${t}_${s} < ${STATE}u) % ring${t};
let shift${t}_${s} = bit${t}_${s} & 31u;
let next${t}_${s} = select((bit${t}_${s} >> 5u) + 1u, 0u, bit${t}_${s} + 32u >= ring${t});
let low_at${t}_${s} = (path_words${t} + (bit${t}_${s} >> 5u)) * (p.cols >> 2u);
let high_at${t}_${s} = (path_words${t} + next${t}_${s}) * (p.cols >> 2u);
#end
#end
#end

#def outer
#if ASKS == 2
let firsts = words${t}(first_at${t} + step + invocation);
#end
#end

#def load
#if WAY == 1 && OWN > 0
#for i in (ASKS > 0)..OWN + 1
let word${i} = words${t}(at${t}_${i} + step);
#end
#if ASKS == 1
var word0 = subgroupShuffleUp(word${OWN}, 1u);
if !asks${t} { word0 = words${t}(at${t}_0 + step); }
#end
#if ASKS == 2
let whose = step % ${SHARES}u;
let first = vec4<u32>(subgroupShuffle(firsts.x, whose), subgroupShuffle(firsts.y, whose), subgroupShuffle(firsts.z, whose), subgroupShuffle(firsts.w, whose));
let word0 = select(subgroupShuffleUp(word${OWN}, 1u), first, invocation == 0u);
#end
// What lies across two words.
#for i in 0..OWN
let across${i} = (word${i} >> vec4<u32>(16u)) | (word${i + 1} << vec4<u32>(16u));
#end
#end
#if WAY == 1 && OWN == 0
#for s in 0..SPLITS
let low${s} = words${t}(low_at${t}_${s} + step) >> vec4<u32>(shift${t}_${s});
let high${s} = (words${t}(high_at${t}_${s} + step) << vec4<u32>(1u)) << vec4<u32>(31u - shift${t}_${s});
let bits${s} = low${s} | high${s};
#end
#end
#if WAY == 2
let path = (step * ${QUADS * 4}u) / term${t}.a;
let path_step = step - path * (term${t}.a / ${QUADS * 4}u);
let last = min(term${t}.a, p.cols - path * term${t}.a) * ${STEP}u / 32u - 1u;
let past = select(path_step * ${WORDS}u - 1u, last, path_step == 0u);
#for r in 0..R
let words${r} = row${t}_${r} * term${t}.row_words + path * term${t}.b;
let word${r}_0 = codes${t}[words${r} + past];
#for i in 0..WORDS
let word${r}_${i + 1} = codes${t}[words${r} + path_step * ${WORDS}u + ${i}u];
#end
#end
#end
#end

// Rows FIRST and on, as many as BITS have: their windows, one over the other, as `n`.
#def windows
#if OWN == 0
let n${FIRST} = (bits${FIRST / SPLIT} >> vec4<u32>(${FIRST % SPLIT * STEP}u)) & vec4<u32>(${BITS_MASK}u);
#else
#let BIT = 32 + (FIRST + 1) * STEP - STATE
#if BIT % 32 + BITS <= 32
let n${FIRST} = (word${BIT / 32} >> vec4<u32>(${BIT % 32}u)) & vec4<u32>(${BITS_MASK}u);
#else
let n${FIRST} = (across${BIT / 32} >> vec4<u32>(${BIT % 32 - 16}u)) & vec4<u32>(${BITS_MASK}u);
#end
#end
#end

// Row `r`, whose older bits make the lowest byte of `mapped`.
#def hashed
#let BIT = 26 + (r + 1) * STEP
#if BIT % 32 <= 26
let index${r} = (word${BIT / 32} >> vec4<u32>(${BIT % 32}u)) ^ mapped;
#else
let index${r} = (across${BIT / 32} >> vec4<u32>(${BIT % 32 - 16}u)) ^ mapped;
#end
let a${r} = index${r} & vec4<u32>(7u);
let l${r} = vec4<u32>(subgroupShuffle(low_values${t}, a${r}.x), subgroupShuffle(low_values${t}, a${r}.y), subgroupShuffle(low_values${t}, a${r}.z), subgroupShuffle(low_values${t}, a${r}.w));
let h${r} = vec4<u32>(subgroupShuffle(high_values${t}, a${r}.x), subgroupShuffle(high_values${t}, a${r}.y), subgroupShuffle(high_values${t}, a${r}.z), subgroupShuffle(high_values${t}, a${r}.w));
let v${r} = select(l${r}, h${r}, (index${r} & vec4<u32>(32u)) != vec4<u32>(0u));
// Rotated, so that the value is in the highest byte.
let b${r} = (v${r} << (index${r} & vec4<u32>(31u))) | (v${r} >> ((vec4<u32>(0u) - index${r}) & vec4<u32>(31u)));
var w${r} = vec4<f32>(bitcast<vec4<i32>>(b${r} & vec4<u32>(0xFF000000u)));
#use done
#end

#def quad
#if LUT == 4
var mapped = vec4<u32>(0u);
#if MAPPED == 3
// Windows of 12 bits at most: three bits of those before the newest are for four rows, a byte each.
#for k in 0..(2 * R + 6) / 3
#let BIT = 22 + k * 3
#if BIT % 32 <= 29
let s${k} = (word${BIT / 32} >> vec4<u32>(${BIT % 32}u)) & vec4<u32>(7u);
#else
let s${k} = (across${BIT / 32} >> vec4<u32>(${BIT % 32 - 16}u)) & vec4<u32>(7u);
#end
mapped ^= vec4<u32>(subgroupShuffle(map${t}_${k % 2}, s${k}.x), subgroupShuffle(map${t}_${k % 2}, s${k}.y), subgroupShuffle(map${t}_${k % 2}, s${k}.z), subgroupShuffle(map${t}_${k % 2}, s${k}.w));
#for r in k * 3 / 2 - 2..k * 3 / 2 - 1 + k % 2
#if r >= 0 && r < R
#use hashed
#end
mapped >>= vec4<u32>(8u);
#end
#end
#else
#let FIRST = 1 - STATE / STEP
#for k in FIRST..R - 6 / STEP
#let BIT = 32 + k * STEP
let s${k - FIRST} = (word${BIT / 32} >> vec4<u32>(${BIT % 32}u)) & vec4<u32>(${STEP * 2 - 1}u);
// The lowest byte is for the row whose newest 6 bits follow.
mapped = (mapped >> vec4<u32>(8u)) ^ vec4<u32>(subgroupShuffle(map${t}_0, s${k - FIRST}.x), subgroupShuffle(map${t}_0, s${k - FIRST}.y), subgroupShuffle(map${t}_0, s${k - FIRST}.z), subgroupShuffle(map${t}_0, s${k - FIRST}.w));
#let r = k + 6 / STEP
#if r >= 0
#use hashed
#end
#end
#end
#else
#if LUT == 3
#let BITS = JOINT
#let BITS_MASK = ENTRIES - 1
#for s in 0..SPLITS
#for g in 0..(SPLIT + AT_ONCE - 1) / AT_ONCE
// The last rows of a word may be some of those before too.
#let NEW = s * SPLIT + g * AT_ONCE
#let FIRST = NEW
#if FIRST + AT_ONCE > (s + 1) * SPLIT
#let FIRST = (s + 1) * SPLIT - AT_ONCE
#end
#use windows
let v${FIRST} = bitcast<vec4<i32>>(vec4<u32>(lut${t}[n${FIRST}.x >> 2u][n${FIRST}.x & 3u], lut${t}[n${FIRST}.y >> 2u][n${FIRST}.y & 3u], lut${t}[n${FIRST}.z >> 2u][n${FIRST}.z & 3u], lut${t}[n${FIRST}.w >> 2u][n${FIRST}.w & 3u]));
#for r in NEW..FIRST + AT_ONCE
// The last row is in the highest byte, others from the lowest on.
#let SHIFT = 24 - (r - FIRST) * 8
#if r == FIRST + AT_ONCE - 1
#let SHIFT = 0
#end
#if M > 1 || FACTOR == 0
var w${r} = vec4<f32>((v${FIRST} << vec4<u32>(${SHIFT}u)) >> vec4<u32>(24u));
#else
// As it is in the highest byte: what a row comes to is put right at its end.
#if SHIFT == 24
var w${r} = vec4<f32>(v${FIRST} << vec4<u32>(24u));
#else
var w${r} = vec4<f32>((v${FIRST} << vec4<u32>(${SHIFT}u)) & vec4<i32>(-0x1000000));
#end
#end
#use done
#end
#end
#end
#else
#for r in 0..R
#if WAY == 0
#for i in 0..4
let n${r}_${i} = window${t}(row${t}_${r}, min(column + ${i}u, p.cols - 1u));
#end
#end
#if WAY == 1
#let FIRST = r
#let BITS = STATE
#let BITS_MASK = MASK
#use windows
#for i in 0..4
let n${r}_${i} = n${r}.${xyzw[i]};
#end
#end
#if WAY == 2
#for i in 0..4
#if (32 + (q * 4 + i + 1) * STEP - STATE) % 32 + STATE <= 32
let n${r}_${i} = (word${r}_${(32 + (q * 4 + i + 1) * STEP - STATE) / 32} >> ${(32 + (q * 4 + i + 1) * STEP - STATE) % 32}u) & ${MASK}u;
#else
let n${r}_${i} = ((word${r}_${(32 + (q * 4 + i + 1) * STEP - STATE) / 32} >> ${(32 + (q * 4 + i + 1) * STEP - STATE) % 32}u) | (word${r}_${(32 + (q * 4 + i + 1) * STEP - STATE) / 32 + 1} << ${32 - (32 + (q * 4 + i + 1) * STEP - STATE) % 32}u)) & ${MASK}u;
#end
#end
#end
#if CODE == 0
#if LUT == 0
var w${r} = vec4<f32>(table${t}(term${t}.table_at + n${r}_0), table${t}(term${t}.table_at + n${r}_1), table${t}(term${t}.table_at + n${r}_2), table${t}(term${t}.table_at + n${r}_3));
#end
#if LUT == 1
var w${r} = vec4<f32>(lut${t}[n${r}_0 >> 2u][n${r}_0 & 3u], lut${t}[n${r}_1 >> 2u][n${r}_1 & 3u], lut${t}[n${r}_2 >> 2u][n${r}_2 & 3u], lut${t}[n${r}_3 >> 2u][n${r}_3 & 3u]);
#end
#if LUT == 2
var w${r} = vec4<f32>(lut[n${r}_0], lut[n${r}_1], lut[n${r}_2], lut[n${r}_3]);
#end
#else
var w${r} = vec4<f32>(window_value(n${r}_0, term${t}.c, term${t}.d), window_value(n${r}_1, term${t}.c, term${t}.d), window_value(n${r}_2, term${t}.c, term${t}.d), window_value(n${r}_3, term${t}.c, term${t}.d));
#end
#use done
#end
#end
#end
#if GROUP == 3
#for r in 0..R
#for i in 0..4
let g${r}_${i} = group_of(min(column + ${i}u, p.cols - 1u), term${t}.group_cols);
w${r}.${xyzw[i]} *= scale${t}(scale_at${t}_${r} + g${r}_${i} * term${t}.scale_col_stride);
#end
#end
#end
#end
