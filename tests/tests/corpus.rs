//! Replays the fuzz targets over their seeds, over the inputs that once broke them, and over a
//! fixed sequence of random ones.

use cmf_tests::targets;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn replay(root: &str, target: targets::Target) -> Result<usize, Box<dyn Error>> {
    let (name, run) = target;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(root).join(name);
    if !folder.is_dir() {
        return Ok(0);
    }
    let mut count = 0;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let input = std::fs::read(&path)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(outcome.is_ok(), "{}", path.display());
        count += 1;
    }
    Ok(count)
}

#[test]
fn seeds_pass() -> Result<(), Box<dyn Error>> {
    for target in targets::ALL {
        assert!(replay("../fuzz/seeds", *target)? > 0, "{} has no seeds", target.0);
    }
    Ok(())
}

#[test]
fn regressions_pass() -> Result<(), Box<dyn Error>> {
    for target in targets::ALL {
        replay("regressions", *target)?;
    }
    Ok(())
}

#[test]
fn random_inputs_pass() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for (name, run) in targets::ALL {
        for i in 0..400 {
            let length = random() % 300;
            let input: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
            assert!(outcome.is_ok(), "{name}: random input {i}: {input:02x?}");
        }
    }
}
