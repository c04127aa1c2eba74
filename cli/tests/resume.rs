//! Conversions that are killed: nothing is left under the output's name, and the next run goes on.

mod common;

use cmf_format::DType;
use common::{Outcome, Place, weights, write_safetensors};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Many small blocks that take some time each, one after the other.
const RECIPE: &str = r#"
name = "slow"
unit_bytes = 4096

[[rule]]
match = "*"
terms = [{ encoding = "codebook", bits = 6, codebooks = 2, vector_cols = 4, iterations = 30 }]
"#;
const CONVERT: [&str; 8] = ["convert", "model.safetensors", "-o", "out.cmf", "-r", "slow.toml", "-j", "1"];

fn place() -> Outcome<Place> {
    let place = Place::new()?;
    let bytes = DType::F32.encode(&weights(256 * 256, 9))?;
    write_safetensors(&place.path("model.safetensors"), &[("w", DType::F32, vec![256, 256], bytes)])?;
    place.write("slow.toml", RECIPE)?;
    Ok(place)
}

/// Starts a conversion and waits until its journal holds about `bytes`.
fn start(place: &Place, bytes: u64) -> Outcome<Child> {
    let child = place.command(&CONVERT).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    while std::fs::metadata(place.path(".out.cmf.partial/journal")).map_or(0, |m| m.len()) < bytes {
        if started.elapsed() > Duration::from_secs(60) {
            return Err("the journal does not grow".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(child)
}

#[test]
fn a_killed_conversion_goes_on_to_the_same_bytes() -> Outcome {
    let place = place()?;
    let mut child = start(&place, 2000)?;
    child.kill()?;
    child.wait()?;
    assert_eq!(place.names()?, [".out.cmf.partial", "model.safetensors", "slow.toml"]);
    let said = place.good(&CONVERT)?;
    let (went_on, _) = said.split_once('\n').ok_or("one line")?;
    assert!(went_on.starts_with("went on from ") && went_on.ends_with(" blocks"), "{said}");
    assert_eq!(place.names()?, ["model.safetensors", "out.cmf", "slow.toml"]);
    let resumed = place.read("out.cmf")?;
    place.good(&[&CONVERT[..], &["--force"]].concat())?;
    assert!(place.read("out.cmf")? == resumed);
    Ok(())
}

#[test]
fn no_resume_begins_anew() -> Outcome {
    let place = place()?;
    let mut child = start(&place, 2000)?;
    child.kill()?;
    child.wait()?;
    let said = place.good(&[&CONVERT[..], &["--no-resume"]].concat())?;
    assert!(!said.contains("went on"), "{said}");
    assert_eq!(place.names()?, ["model.safetensors", "out.cmf", "slow.toml"]);
    Ok(())
}

#[test]
fn another_recipe_takes_nothing_over() -> Outcome {
    let place = place()?;
    let mut child = start(&place, 2000)?;
    child.kill()?;
    child.wait()?;
    place.write("slow.toml", RECIPE.replace("bits = 6", "bits = 5"))?;
    let said = place.good(&CONVERT)?;
    assert!(!said.contains("went on"), "{said}");
    place.good(&["verify", "out.cmf"])?;
    Ok(())
}

#[test]
fn two_conversions_to_one_output_do_not_mix() -> Outcome {
    let place = place()?;
    let mut child = start(&place, 1000)?;
    let said = place.refused(&CONVERT);
    child.kill()?;
    child.wait()?;
    let said = said?;
    assert!(said.contains("another conversion uses it"), "{said}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_termination_leaves_no_output() -> Outcome {
    let place = place()?;
    let mut child = start(&place, 1000)?;
    // Not an interrupt, which a background shell makes its children ignore.
    let killed = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
    assert!(killed.success());
    assert!(!child.wait()?.success());
    assert!(!place.path("out.cmf").exists());
    assert!(place.good(&CONVERT)?.starts_with("went on from "));
    Ok(())
}
