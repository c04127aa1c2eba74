// sign_low_rank (spec: encodings/sign_low_rank): four columns are four bits of a word. The factors are
//  numbers in `side`: a of rows by rank at scale_at, b of rank by columns at zero_at. term.a: rank.
#def begin
#for r in 0..R
let row${r} = min(row0 + ${r}u, p.rows - 1u);
#end
#end

#def load
#end

#def quad
#for r in 0..R
let signs${r} = codes${t}[row${r} * term.row_words + (column >> 5u)] >> (column & 31u);
#end
#for r in 0..R
var w${r} = vec4<f32>(0.0);
#end
#for i in 0..4
let at_${i} = term.zero_at + min(column + ${i}u, p.cols - 1u);
#end
for (var k = 0u; k < term.a; k++) {
  let b = vec4<f32>(zero${t}(at_0 + k * p.cols), zero${t}(at_1 + k * p.cols), zero${t}(at_2 + k * p.cols), zero${t}(at_3 + k * p.cols));
#for r in 0..R
  w${r} += scale${t}(term.scale_at + row${r} * term.a + k) * b;
#end
}
#for r in 0..R
#for i in 0..4
if ((signs${r} >> ${i}u) & 1u) == 0u { w${r}.${xyzw[i]} = -w${r}.${xyzw[i]}; }
#end
#end
#end
