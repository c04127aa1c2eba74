// Numbers beside the codes: 1 f32, 2 f16, 3 bf16, in the buffer `side`.
fn half_of(word: u32, index: u32) -> f32 {
  let both = unpack2x16float(word);
  return select(both.x, both.y, (index & 1u) == 1u);
}
fn bf16_of(word: u32, index: u32) -> f32 {
  return bitcast<f32>((word >> ((index & 1u) * 16u)) << 16u);
}
#for t in 0..TERMS
fn scale${t}(index: u32) -> f32 {
#if SCALE == 1
  return bitcast<f32>(side${t}[index]);
#end
#if SCALE == 2
  return half_of(side${t}[index >> 1u], index);
#end
#if SCALE == 3
  return bf16_of(side${t}[index >> 1u], index);
#end
#if SCALE == 0
  return 1.0;
#end
}
fn zero${t}(index: u32) -> f32 {
#if ZERO == 1
  return bitcast<f32>(side${t}[index]);
#end
#if ZERO == 2
  return half_of(side${t}[index >> 1u], index);
#end
#if ZERO == 3
  return bf16_of(side${t}[index >> 1u], index);
#end
#if ZERO == 0
  return 0.0;
#end
}
fn table${t}(index: u32) -> f32 {
  return bitcast<f32>(side${t}[index]);
}
#end
fn group_of(column: u32, group_cols: u32) -> u32 {
#if SHIFT == 1
  return column >> group_cols;
#else
  return column / group_cols;
#end
}
