//! What the command says of itself: help, recipes, completions, wrong usage.

mod common;

use common::{Outcome, Place, check};

const COMMANDS: [&str; 9] =
    ["convert", "inspect", "verify", "plan", "export", "diff", "recipe", "bench", "completions"];

#[test]
fn help_is_as_stored() -> Outcome {
    let place = Place::new()?;
    check("help.txt", &place.good(&["--help"])?)?;
    for command in COMMANDS {
        check(&format!("help_{command}.txt"), &place.good(&[command, "--help"])?)?;
    }
    Ok(())
}

#[test]
fn every_command_but_completions_has_examples() -> Outcome {
    let place = Place::new()?;
    for command in COMMANDS.iter().filter(|command| **command != "completions") {
        assert!(place.good(&[command, "--help"])?.contains("\nExamples:\n  cmf "), "{command}");
    }
    Ok(())
}

#[test]
fn version_is_that_of_the_crate() -> Outcome {
    assert_eq!(Place::new()?.good(&["--version"])?, format!("cmf {}\n", env!("CARGO_PKG_VERSION")));
    Ok(())
}

#[test]
fn wrong_usage_is_2_and_says_so_on_standard_error() -> Outcome {
    let place = Place::new()?;
    for args in [
        &[][..],
        &["fetch"],
        &["convert"],
        &["verify", "a", "b"],
        &["inspect", "--tensor", "a"],
        &["completions", "tcsh"],
    ] {
        let said = place.refused(args)?;
        assert!(said.contains("Usage: ") || said.contains("try '--help'"), "{args:?}: {said}");
    }
    Ok(())
}

#[test]
fn completions_name_every_command() -> Outcome {
    let place = Place::new()?;
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = place.good(&["completions", shell])?;
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} {command}");
        }
    }
    Ok(())
}

#[test]
fn recipes_are_listed_and_printed() -> Outcome {
    let place = Place::new()?;
    let list = place.good(&["recipe"])?;
    check("recipes.txt", &list)?;
    let json = place.cmf(&["recipe", "--json"])?.json()?;
    assert_eq!(json["recipes"].as_array().map(Vec::len), Some(list.lines().count()));
    for line in list.lines() {
        let name = line.split(' ').next().ok_or("no name")?;
        let text = place.good(&["recipe", name])?;
        place.write("mine.toml", &text)?;
        assert_eq!(place.good(&["recipe", "mine.toml"])?, text, "{name}");
    }
    assert!(place.refused(&["recipe", "q44"])?.starts_with("cmf: recipe `q44` is not built in (keep, "));
    Ok(())
}
