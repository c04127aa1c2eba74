// Rows of a sum of terms: those from a first one on, or those that `ids` names. A thread has a step.
#import params
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
#import numbers
#def done
#end
#import ENCODING

@compute @workgroup_size(${WIDTH})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let step = id.x;
  let item = id.y + id.z * 65535u;
  if step >= p.steps || item >= p.batch { return; }
  var row_of_matrix = p.ids_at + item;
  if p.gathers != 0u { row_of_matrix = ids[row_of_matrix]; }
  if row_of_matrix < p.first_row || row_of_matrix - p.first_row >= p.rows { return; }
  let row0 = row_of_matrix - p.first_row;
  let at = p.out_at + item * p.out_stride + p.first_col + step * ${QUADS * 4}u;
#for q in 0..QUADS
  var sum${q} = vec4<f32>(0.0);
#end
  var begun = p.accumulates != 0u;
  if begun {
#for q in 0..QUADS
#for i in 0..4
    if step * ${QUADS * 4}u + ${q * 4 + i}u < p.cols { sum${q}.${xyzw[i]} = out[at + ${q * 4 + i}u]; }
#end
#end
  }
#for t in 0..TERMS
  if ((p.terms_held >> ${t}u) & 1u) != 0u {
    let term = p.terms[${t}];
#use begin
#use load
#for q in 0..QUADS
    {
      let column = step * ${QUADS * 4}u + ${q * 4}u;
#use quad
#if FACTOR != 0
      w0 *= factor0;
#end
      sum${q} = select(w0, sum${q} + w0, begun);
    }
#end
    begun = true;
  }
#end
#for q in 0..QUADS
#for i in 0..4
  if step * ${QUADS * 4}u + ${q * 4 + i}u < p.cols { out[at + ${q * 4 + i}u] = sum${q}.${xyzw[i]}; }
#end
#end
}
