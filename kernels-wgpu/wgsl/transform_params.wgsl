// What a dispatch of `transform`, `hadamard` or `layout` is told. Mirrored by `TransformParams` in src/params.rs.
struct Params {
  // Elements of a vector, and of one with the zeros that follow it in a layout.
  size: u32,
  padded: u32,
  // Of the Hadamard matrices, 0 without.
  block: u32,
  factor: f32,
  // Bits: 1 indices, 2 pre, 4 post, 8 factor.
  uses: u32,
  batch: u32,
  in_at: u32,
  in_stride: u32,
  out_at: u32,
  out_stride: u32,
  // Activations of a tile, 0 for a plain result.
  tile: u32,
  // Elements of a workgroup.
  span: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
