// codebook (spec: encodings/codebook): BOOKS codebooks of vectors of VECTOR_ROWS by VECTOR_COLS,
// codes of BITS bits. SCALE: kind of the scale, 0 for none. term.a: the first entry in `side`, f32;
// group_cols: columns that share a scale.
#for t in 0..TERMS
fn code${t}(words: u32, number: u32) -> u32 {
  let bit = number * ${BITS}u;
  let low = codes${t}[words + (bit >> 5u)] >> (bit & 31u);
#if 32 % BITS == 0
  return low & ${MASK}u;
#else
  let high = (codes${t}[words + (bit >> 5u) + 1u] << 1u) << (31u - (bit & 31u));
  return (low | high) & ${MASK}u;
#end
}
#end

#def begin
#for r in 0..R
let row${r} = min(row0 + ${r}u, p.rows - 1u);
let down${r} = row${r} / ${VECTOR_ROWS}u;
let words${r} = down${r} * term.row_words;
let entry${r} = term.a + (row${r} - down${r} * ${VECTOR_ROWS}u) * ${VECTOR_COLS}u;
#if SCALE != 0
let scale_at${r} = term.scale_at + down${r} * term.scale_row_stride;
#end
#end
#end

#def load
#end

#def quad
#if VECTOR_COLS % 4 == 0
let across = column / ${VECTOR_COLS}u;
let inside_vector = column % ${VECTOR_COLS}u;
#if SCALE != 0
let scale_group = group_of(column, term.group_cols);
#end
#else
#for i in 0..4
let column_${i} = min(column + ${i}u, p.cols - 1u);
let across_${i} = column_${i} / ${VECTOR_COLS}u;
let inside_vector_${i} = column_${i} % ${VECTOR_COLS}u;
#end
#end
#for r in 0..R
var w${r}: vec4<f32>;
#for m in 0..BOOKS
#if VECTOR_COLS % 4 == 0
let at${r}_${m} = entry${r} + (code${t}(words${r}, across * ${BOOKS}u + ${m}u) + ${m * (MASK + 1)}u) * ${VECTOR_ROWS * VECTOR_COLS}u + inside_vector;
let n${r}_${m} = vec4<f32>(table${t}(at${r}_${m}), table${t}(at${r}_${m} + 1u), table${t}(at${r}_${m} + 2u), table${t}(at${r}_${m} + 3u));
#else
var n${r}_${m}: vec4<f32>;
#for i in 0..4
n${r}_${m}.${xyzw[i]} = table${t}(entry${r} + (code${t}(words${r}, across_${i} * ${BOOKS}u + ${m}u) + ${m * (MASK + 1)}u) * ${VECTOR_ROWS * VECTOR_COLS}u + inside_vector_${i});
#end
#end
#if m == 0
w${r} = n${r}_${m};
#else
w${r} += n${r}_${m};
#end
#end
#if SCALE != 0
#if VECTOR_COLS % 4 == 0
w${r} *= scale${t}(scale_at${r} + scale_group * term.scale_col_stride);
#else
#for i in 0..4
w${r}.${xyzw[i]} *= scale${t}(scale_at${r} + group_of(column_${i}, term.group_cols) * term.scale_col_stride);
#end
#end
#end
#end
#end
