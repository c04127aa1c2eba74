//! Writes the values of all tensors of a GGUF model to standard output, as little-endian f32 in
//! the order of the file. With `--nodes`, they come from nodes of the container.
//!
//! ```text
//! cargo run --release -p cmf-converters --example gguf_values -- [--nodes] MODEL.gguf > values.f32
//! ```

use std::error::Error;
use std::io::{BufWriter, Write};

use cmf_converters::gguf::{GgufSource, TensorInfo, block_node, decode};

/// Bytes to read at once, so that memory does not grow with the model.
const CHUNK_BYTES: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let count = args.len();
    args.retain(|arg| arg != "--nodes");
    let nodes = args.len() < count;
    let [path] = args.as_slice() else { return Err("usage: gguf_values [--nodes] MODEL.gguf".into()) };
    let source = GgufSource::open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for tensor in source.tensors() {
        let step = (CHUNK_BYTES / tensor.row_bytes().max(1)).max(1);
        for start in (0..tensor.rows()).step_by(usize::try_from(step)?) {
            let rows = start..tensor.rows().min(start + step);
            let count = rows.end - rows.start;
            source.read_rows(tensor.name(), rows, &mut bytes)?;
            values.resize(usize::try_from(count * tensor.cols())?, 0.0);
            if nodes {
                node_values(tensor, count, &bytes, &mut values)?;
            } else {
                decode(tensor.ty(), &bytes, &mut values)?;
            }
            for value in &values {
                out.write_all(&value.to_le_bytes())?;
            }
        }
    }
    Ok(out.flush()?)
}

fn node_values(tensor: &TensorInfo, rows: u64, bytes: &[u8], out: &mut [f32]) -> Result<(), Box<dyn Error>> {
    let node = block_node(tensor.ty(), rows, tensor.cols(), bytes)?;
    Ok(node.view()?.decode_rows(0..usize::try_from(rows)?, out)?)
}
