//! Writes `fuzz/seeds/<target>/`, the inputs that every fuzz run starts from.
//!
//! `cargo run -p cmf-tests --bin seeds`

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut total = 0;
    for (target, seeds) in cmf_tests::seeds::all()? {
        let folder = root.join(target);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(&folder)?,
        }
        for (name, bytes) in &seeds {
            std::fs::write(folder.join(name), bytes)?;
            total += bytes.len();
        }
        println!("{target}: {} seeds", seeds.len());
    }
    println!("{total} bytes");
    Ok(())
}
