//! Writes the values of all tensors of a GGUF model to standard output, as little-endian f32 in
//! the order of the file.
//!
//! ```text
//! cargo run --release -p cmf-converters --example gguf_values -- MODEL.gguf > values.f32
//! ```

use std::error::Error;
use std::io::{BufWriter, Write};

use cmf_converters::gguf::{GgufSource, decode};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: gguf_values MODEL.gguf")?;
    let source = GgufSource::open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for tensor in source.tensors() {
        // A row at a time, so that memory does not grow with the model.
        for row in 0..tensor.rows() {
            source.read_rows(tensor.name(), row..row + 1, &mut bytes)?;
            values.resize(usize::try_from(tensor.cols())?, 0.0);
            decode(tensor.ty(), &bytes, &mut values)?;
            for value in &values {
                out.write_all(&value.to_le_bytes())?;
            }
        }
    }
    Ok(out.flush()?)
}
