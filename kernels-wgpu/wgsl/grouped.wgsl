// grouped (spec: encodings/grouped): a step is 32 columns, whose codes fill BITS words.
// MAP: 0 integer, 1 table. GROUP: 0 neither scale nor zero, else the columns that surely share them:
// 1 a step, 2 four, 3 one. SCALE_OP, ZERO_OP: as in the descriptor. term.a: the offset.
#def begin
#for r in 0..R
let row${r} = min(row0 + ${r}u, p.rows - 1u);
let words${r} = row${r} * term.row_words;
#if GROUP != 0
let group_row${r} = select(row${r} / max(term.group_rows, 1u), 0u, term.group_rows == 0u);
let scale_at${r} = term.scale_at + group_row${r} * term.scale_row_stride;
let zero_at${r} = term.zero_at + group_row${r} * term.zero_row_stride;
#end
#if MAP == 1
let table_at${r} = term.table_at + row${r} * term.table_row_stride;
#end
#end
#end

#def load
#if GROUP == 1
let group = group_of(step * 32u, term.group_cols);
#for r in 0..R
let factor${r} = scale${t}(scale_at${r} + group * term.scale_col_stride);
let z${r} = zero${t}(zero_at${r} + group * term.zero_col_stride);
#end
#end
#for r in 0..R
#if VEC == 1
#for i in 0..BITS / 4
let v${r}_${i} = codes${t}[(words${r} >> 2u) + step * ${BITS / 4}u + ${i}u];
#for c in 0..4
let word${r}_${i * 4 + c} = v${r}_${i}.${xyzw[c]};
#end
#end
#else
#for i in 0..BITS
let word${r}_${i} = codes${t}[words${r} + step * ${BITS}u + ${i}u];
#end
#end
#end
#end

#def quad
#for r in 0..R
#for i in 0..4
#if (q * 4 + i) * BITS % 32 + BITS <= 32
let c${r}_${i} = (word${r}_${(q * 4 + i) * BITS / 32} >> ${(q * 4 + i) * BITS % 32}u) & ${MASK}u;
#else
let c${r}_${i} = ((word${r}_${(q * 4 + i) * BITS / 32} >> ${(q * 4 + i) * BITS % 32}u) | (word${r}_${(q * 4 + i) * BITS / 32 + 1} << ${32 - (q * 4 + i) * BITS % 32}u)) & ${MASK}u;
#end
#end
#if MAP == 0
var w${r} = vec4<f32>(vec4<i32>(vec4<u32>(c${r}_0, c${r}_1, c${r}_2, c${r}_3)) + bitcast<i32>(term.a));
#else
var w${r} = vec4<f32>(table${t}(table_at${r} + c${r}_0), table${t}(table_at${r} + c${r}_1), table${t}(table_at${r} + c${r}_2), table${t}(table_at${r} + c${r}_3));
#end
#if GROUP == 1
let s${r} = factor${r};
let o${r} = z${r};
#end
#if GROUP == 2
let g${r} = group_of(column, term.group_cols);
let s${r} = scale${t}(scale_at${r} + g${r} * term.scale_col_stride);
let o${r} = zero${t}(zero_at${r} + g${r} * term.zero_col_stride);
#end
#if GROUP == 3
var s${r}: vec4<f32>;
var o${r}: vec4<f32>;
#for i in 0..4
let g${r}_${i} = min(group_of(column + ${i}u, term.group_cols), term.b);
s${r}.${xyzw[i]} = scale${t}(scale_at${r} + g${r}_${i} * term.scale_col_stride);
o${r}.${xyzw[i]} = zero${t}(zero_at${r} + g${r}_${i} * term.zero_col_stride);
#end
#end
#if ZERO_OP == 1
w${r} -= o${r};
#end
#if SCALE_OP == 1 && FACTOR == 0
w${r} *= s${r};
#end
#if SCALE_OP == 2
w${r} /= s${r};
#end
#if ZERO_OP == 2
w${r} += o${r};
#end
#end
#end
