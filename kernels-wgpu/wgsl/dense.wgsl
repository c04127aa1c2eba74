// dense (spec: encodings/dense): KIND 1 f32, 2 f16, 3 bf16; other types are one of these in here.
// A step is what a vec4<u32> holds, or four columns where rows do not start at one.
#def begin
#for r in 0..R
let row${r} = min(row0 + ${r}u, p.rows - 1u);
#if VEC == 1
let words${r} = row${r} * (term.row_words >> 2u);
#else
let words${r} = row${r} * p.cols;
#end
#end
#end

#def load
#if VEC == 1
#for r in 0..R
let v${r} = codes${t}[words${r} + step];
#end
#end
#end

#def quad
#for r in 0..R
#if VEC == 1
#if KIND == 1
var w${r} = bitcast<vec4<f32>>(v${r});
#end
#if KIND == 2
var w${r} = vec4<f32>(unpack2x16float(v${r}.${xyzw[q * 2]}), unpack2x16float(v${r}.${xyzw[q * 2 + 1]}));
#end
#if KIND == 3
let d${r} = vec2<u32>(v${r}.${xyzw[q * 2]}, v${r}.${xyzw[q * 2 + 1]});
var w${r} = bitcast<vec4<f32>>(vec4<u32>(d${r}.x << 16u, d${r}.x & 0xFFFF0000u, d${r}.y << 16u, d${r}.y & 0xFFFF0000u));
#end
#else
var w${r}: vec4<f32>;
#for i in 0..4
let at${r}_${i} = words${r} + min(column + ${i}u, p.cols - 1u);
#if KIND == 1
w${r}.${xyzw[i]} = bitcast<f32>(codes${t}[at${r}_${i}]);
#end
#if KIND == 2
w${r}.${xyzw[i]} = half_of(codes${t}[at${r}_${i} >> 1u], at${r}_${i});
#end
#if KIND == 3
w${r}.${xyzw[i]} = bf16_of(codes${t}[at${r}_${i} >> 1u], at${r}_${i});
#end
#end
#end
#end
#end
