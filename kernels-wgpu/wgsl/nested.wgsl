// nested (spec: encodings/nested): BITS, ROUND and MAP of this level, LOWER_BITS (0: none),
// LOWER_ROUND and LOWER_MAP of the level below, whose numbers are in the second half of the terms.
// Four columns are four bits of a word of each of PLANES planes, which are term.a words apart.
#def begin
let under = p.terms[${t + TERMS * (LEVELS - 1)}];
#for r in 0..R
let row${r} = min(row0 + ${r}u, p.rows - 1u);
#end
#end

#def load
#end

#def quad
#for r in 0..R
#for i in 0..PLANES
let plane${r}_${i} = codes${t}[row${r} * term.row_words + (column >> 5u) + ${i}u * term.a] >> (column & 31u);
#end
var w${r}: vec4<f32>;
#for i in 0..4
var c${r}_${i} = 0u;
#for b in 0..BITS
c${r}_${i} = (c${r}_${i} << 1u) | ((plane${r}_${b} >> ${i}u) & 1u);
#end
#if ROUND == 1
c${r}_${i} = min(c${r}_${i} + ((plane${r}_${BITS} >> ${i}u) & 1u), ${MASK}u);
#end
#if MAP == 0
let g${r}_${i} = select(min(column + ${i}u, p.cols - 1u) / max(term.group_cols, 1u), 0u, term.group_cols == 0u);
w${r}.${xyzw[i]} = (f32(c${r}_${i}) - zero${t}(term.zero_at + row${r} * term.zero_row_stride + g${r}_${i} * term.zero_col_stride)) * scale${t}(term.scale_at + row${r} * term.scale_row_stride + g${r}_${i} * term.scale_col_stride);
#else
w${r}.${xyzw[i]} = table${t}(term.table_at + row${r} * term.table_row_stride + c${r}_${i});
#end
#if LOWER_BITS != 0
var d${r}_${i} = 0u;
#for b in 0..LOWER_BITS
d${r}_${i} = (d${r}_${i} << 1u) | ((plane${r}_${b} >> ${i}u) & 1u);
#end
#if LOWER_ROUND == 1
d${r}_${i} = min(d${r}_${i} + ((plane${r}_${LOWER_BITS} >> ${i}u) & 1u), ${LOWER_MASK}u);
#end
#if LOWER_MAP == 0
let h${r}_${i} = select(min(column + ${i}u, p.cols - 1u) / max(under.group_cols, 1u), 0u, under.group_cols == 0u);
w${r}.${xyzw[i]} -= (f32(d${r}_${i}) - zero${t}(under.zero_at + row${r} * under.zero_row_stride + h${r}_${i} * under.zero_col_stride)) * scale${t}(under.scale_at + row${r} * under.scale_row_stride + h${r}_${i} * under.scale_col_stride);
#else
w${r}.${xyzw[i]} -= table${t}(under.table_at + row${r} * under.table_row_stride + d${r}_${i});
#end
#end
#end
#end
#end
