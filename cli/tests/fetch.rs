//! `cmf fetch` and `cmf run` with a server on the loopback.

mod common;
#[path = "../../sources/tests/server/mod.rs"]
#[allow(dead_code, reason = "its other answers are for the tests of the crate")]
mod server;

use cmf_format::DType;
use common::{Outcome, Place};
use server::{Answer, Server};
use std::time::Duration;

/// A converted model of 1.2 MB.
fn model(place: &Place) -> Outcome<Vec<u8>> {
    let part = |name, seed| -> Outcome<common::Part> {
        Ok((name, DType::F32, vec![300, 500], DType::F32.encode(&common::weights(300 * 500, seed))?))
    };
    common::write_safetensors(&place.path("in.safetensors"), &[part("a", 1)?, part("b", 2)?])?;
    place.good(&["convert", "in.safetensors", "-o", "whole.cmf", "--recipe", "keep"])?;
    place.read("whole.cmf")
}

#[test]
fn fetches_a_file_as_it_is() -> Outcome {
    let place = Place::new()?;
    let file = model(&place)?;
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let report =
        place.cmf(&["fetch", &server.url, "-o", "m.cmf", "--json", "--plot", "comes.svg"])?.json()?;
    let picture = String::from_utf8(place.read("comes.svg")?)?;
    for text in ["model.cmf: ", "required units: ", "the whole file: ", "while it comes"] {
        assert!(picture.contains(text), "{text} in {picture}");
    }
    assert_eq!((&report["complete"], &report["file_bytes"]), (&true.into(), &file.len().into()));
    assert!(place.read("m.cmf")? == file);
    assert!(place.refused(&["fetch", &server.url, "-o", "m.cmf"])?.contains("exists"));
    assert!(place.refused(&["fetch", "m.cmf", "-o", "n.cmf"])?.contains("http"));
    Ok(())
}

#[test]
fn fetches_tensors_by_name() -> Outcome {
    let place = Place::new()?;
    let file = model(&place)?;
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let args = ["fetch", &server.url, "-o", "m.cmf", "--only", "b*", "--json"];
    let report = place.cmf(&args)?.json()?;
    assert_eq!(report["complete"], false);
    assert!(server.sent() < file.len() as u64 * 2 / 3, "{} of {}", server.sent(), file.len());
    assert!(
        place.refused(&["fetch", &server.url, "-o", "n.cmf", "--only", "c"])?.contains("no tensor matches")
    );
    place.good(&args[..4])?;
    assert!(place.read("m.cmf")? == file);
    Ok(())
}

#[cfg(feature = "object-store")]
#[test]
fn fetches_from_a_bucket_with_credentials_of_the_environment() -> Outcome {
    let place = Place::new()?;
    let file = model(&place)?;
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let output = place
        .command(&["fetch", "s3://bucket/a/m.cmf", "-o", "m.cmf", "--quiet"])
        .env("AWS_ACCESS_KEY_ID", "KEYID")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_ENDPOINT_URL", server.host())
        .env("AWS_ALLOW_HTTP", "true")
        .output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(place.read("m.cmf")? == file);
    assert!(server.last().to_ascii_lowercase().starts_with("get /bucket/a/m.cmf "), "{}", server.last());
    Ok(())
}

#[cfg(not(feature = "object-store"))]
#[test]
fn addresses_of_buckets_name_the_feature_that_is_lacking() -> Outcome {
    let refused = Place::new()?.refused(&["fetch", "s3://bucket/m.cmf", "-o", "m.cmf"])?;
    assert!(refused.contains("feature `object-store`"), "{refused}");
    Ok(())
}

#[test]
fn a_fetch_that_is_killed_goes_on_to_the_same_file() -> Outcome {
    let place = Place::new()?;
    let file = model(&place)?;
    let server = Server::new(file.clone(), |_, _| Answer::Slow(16_000))?;
    let args = ["fetch", &server.url, "-o", "m.cmf", "--quiet"];
    let mut killed = 0;
    for moment in [3u64, 90, 40, 160, 25, 70, 120, 10, 200, 55] {
        let mut child = place.command(&args).spawn()?;
        std::thread::sleep(Duration::from_millis(moment));
        child.kill()?;
        killed += usize::from(!child.wait()?.success());
    }
    assert!(killed > 3, "the server was too fast for {killed} of them");
    place
        .good(&args[..4])
        .or_else(|e| if place.path("m.cmf").exists() { Ok(String::new()) } else { Err(e) })?;
    assert!(place.read("m.cmf")? == file);
    // Each piece came once, but for those that were on their way.
    assert!(server.sent() < 4 * file.len() as u64, "{} bytes sent for {}", server.sent(), file.len());
    Ok(())
}

#[cfg(feature = "models")]
#[test]
fn a_model_talks_from_a_server_as_it_does_from_a_file() -> Outcome {
    let place = Place::new()?;
    common::llama::write(&place, &common::llama::Shape { vocab: 40, hidden: 64 })?;
    place.good(&["convert", "model", "-o", "m.cmf", "--recipe", "any-size"])?;
    let server = Server::new(place.read("m.cmf")?, |_, _| Answer::Slow(8_000))?;
    let talk = |file: &str, budget: &str| -> Outcome<serde_json::Value> {
        let run = place.cmf(&[
            "run", file, "--cache", "cache", "--raw", "--json", "-n", "4", "--budget", budget, "-p", "w1 w2",
        ])?;
        let last = run.stdout.lines().last().ok_or_else(|| format!("{run:?}"))?;
        Ok(serde_json::from_str(last)?)
    };
    assert_eq!(talk(&server.url, "min")?["text"], talk("m.cmf", "min")?["text"]);
    let part = place.names()?;
    assert!(part.contains(&"cache".to_owned()), "{part:?}");
    // What is there is not asked for again, and more comes when there is more to come.
    let whole = loop {
        talk(&server.url, "max")?;
        let names: Vec<_> = std::fs::read_dir(place.path("cache"))?.collect::<Result<_, _>>()?;
        if names.iter().all(|entry| entry.path().extension().is_some_and(|e| e == "cmf")) {
            break names;
        }
    };
    assert_eq!(whole.len(), 1);
    assert!(std::fs::read(whole[0].path())? == place.read("m.cmf")?);
    let asked = server.requests();
    assert_eq!(talk(&server.url, "max")?["text"], talk("m.cmf", "max")?["text"]);
    assert_eq!(server.requests(), asked);
    Ok(())
}
