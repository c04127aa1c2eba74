//! The same from every source; and what object stores are asked for.

mod model;
#[allow(dead_code, reason = "each test file uses its part of it")]
mod server;

use cmf_loader::Model;
use cmf_sources::{ErrorKind, Fetch, Http, Memory, Remote};
use model::{model, options};
use server::{Answer, Server};
use std::path::Path;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn fetch(remote: Box<dyn Remote>, target: &Path) -> cmf_sources::Result<()> {
    let fetch = Fetch::begin(remote, target, options())?;
    fetch.run(&|_| {})?;
    fetch.finish().map(drop)
}

/// Every source of the file that `server` and `path` have.
fn sources(server: &Server, path: &Path) -> Fallible<Vec<Box<dyn Remote>>> {
    #[allow(unused_mut, reason = "there are more with the feature")]
    let mut sources: Vec<Box<dyn Remote>> = vec![
        Box::new(Http::new(&server.url, &options())),
        Box::new(Memory::new("memory", std::fs::read(path)?)),
    ];
    #[cfg(feature = "object-store")]
    {
        sources.extend(stores::of(server)?);
        let url = format!("file://{}", path.display());
        sources.push(Box::new(cmf_sources::Object::with(&url, [], &options())?));
    }
    Ok(sources)
}

#[test]
fn every_source_gives_the_same_file() -> Fallible<()> {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let path = dir.path().join("whole.cmf");
    std::fs::write(&path, &file)?;
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    for source in sources(&server, &path)? {
        let (name, target) = (source.name(), dir.path().join("model.cmf"));
        fetch(source, &target).map_err(|e| format!("{name}: {e}"))?;
        assert!(std::fs::read(&target)? == file, "{name}");
        std::fs::remove_file(&target)?;
    }
    Ok(())
}

#[test]
fn every_source_gives_a_budget_its_own_bytes() -> Fallible<()> {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let path = dir.path().join("whole.cmf");
    std::fs::write(&path, &file)?;
    let least = Model::open(&path)?.schedule()?.required_steps();
    let server = Server::new(file, |_, _| Answer::Good)?;
    for (number, source) in sources(&server, &path)?.into_iter().enumerate() {
        let (name, target) = (source.name(), dir.path().join(format!("{number}.cmf")));
        let fetch = Fetch::begin(source, &target, options())?;
        fetch.limit(least);
        fetch.run(&|_| {}).map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(fetch.arrived(), Some(least), "{name}");
        let progress = fetch.progress();
        assert_eq!(progress.have_bytes, progress.wanted_bytes, "{name}");
        assert!(progress.received_bytes <= progress.wanted_bytes, "{name}");
    }
    Ok(())
}

#[test]
fn every_source_says_that_nothing_is_there() -> Fallible<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::new(model(1)?, |_, _| Answer::Status(404))?;
    let path = dir.path().join("whole.cmf");
    std::fs::write(&path, "")?;
    let sources = sources(&server, &path)?;
    std::fs::remove_file(&path)?;
    for source in sources {
        let name = source.name();
        let result = fetch(source, &dir.path().join("model.cmf"));
        let expected = if name == "memory" { ErrorKind::Format } else { ErrorKind::Refused };
        assert_eq!(result.err().map(|e| e.kind()), Some(expected), "{name}");
    }
    Ok(())
}

/// An address at which nobody is.
fn nobody() -> std::io::Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(format!("http://{}", listener.local_addr()?))
}

/// Options with which trying again would take minutes.
fn patient() -> cmf_sources::FetchOptions {
    cmf_sources::FetchOptions { pause: std::time::Duration::from_secs(30), ..options() }
}

/// That a fetch says at once that nobody is there.
fn is_absent(source: Box<dyn Remote>) -> Fallible<()> {
    let (dir, started) = (tempfile::tempdir()?, std::time::Instant::now());
    let failed =
        Fetch::begin(source, &dir.path().join("model.cmf"), patient()).err().ok_or("somebody is there")?;
    assert_eq!(failed.kind(), ErrorKind::Unreachable, "{failed}");
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_asked_once() -> Fallible<()> {
    is_absent(Box::new(Http::new(&format!("{}/model.cmf", nobody()?), &patient())))
}

#[test]
fn a_server_that_goes_is_waited_for() -> Fallible<()> {
    /// Somebody is there for the first request, and from the fourth on.
    struct Sometimes(Http, std::sync::atomic::AtomicUsize);
    impl Remote for Sometimes {
        fn name(&self) -> String {
            self.0.name()
        }

        fn get(&self, range: core::ops::Range<u64>) -> Result<cmf_sources::Body, cmf_sources::Failure> {
            match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                1..4 => Err(cmf_sources::Failure::Absent("connection refused".into())),
                _ => self.0.get(range),
            }
        }
    }
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let source = Sometimes(Http::new(&server.url, &options()), Default::default());
    let target = dir.path().join("model.cmf");
    fetch(Box::new(source), &target)?;
    assert!(std::fs::read(&target)? == file);
    Ok(())
}

#[cfg(feature = "object-store")]
mod stores {
    use super::*;
    use cmf_sources::Object;
    use std::ops::Range;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn s3(server: &Server) -> Fallible<Box<dyn Remote>> {
        let variables = variables(&[
            ("AWS_ACCESS_KEY_ID", "KEYID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", server.host()),
            ("AWS_ALLOW_HTTP", "true"),
            ("TOKEN", "no setting of a store"),
        ]);
        Ok(Box::new(Object::with("s3://bucket/folder/model.cmf", variables, &options())?))
    }

    fn gs(server: &Server) -> Fallible<Box<dyn Remote>> {
        let variables = variables(&[
            ("GOOGLE_BASE_URL", server.host()),
            ("GOOGLE_BEARER_TOKEN", "bearer"),
            ("GOOGLE_ALLOW_HTTP", "true"),
        ]);
        Ok(Box::new(Object::with("gs://bucket/folder/model.cmf", variables, &options())?))
    }

    fn az(server: &Server) -> Fallible<Box<dyn Remote>> {
        let variables = variables(&[
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
            ("AZURE_STORAGE_ENDPOINT", server.host()),
            ("AZURE_ALLOW_HTTP", "true"),
        ]);
        Ok(Box::new(Object::with("az://bucket/folder/model.cmf", variables, &options())?))
    }

    pub(super) fn of(server: &Server) -> Fallible<Vec<Box<dyn Remote>>> {
        Ok(vec![s3(server)?, gs(server)?, az(server)?])
    }

    /// Fetches from each store through a server that chooses its answers.
    fn all(
        choose: impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + Clone + 'static,
    ) -> Fallible<Vec<(String, Option<ErrorKind>)>> {
        let file = model(1)?;
        let mut results = Vec::new();
        for make in [s3, gs, az] {
            let dir = tempfile::tempdir()?;
            let server = Server::new(file.clone(), choose.clone())?;
            let (source, target) = (make(&server)?, dir.path().join("model.cmf"));
            let name = source.name();
            let result = fetch(source, &target);
            let came = std::fs::read(&target).is_ok_and(|bytes| bytes == file);
            assert_eq!(came, result.is_ok(), "{name}");
            results.push((name, result.err().map(|e| e.kind())));
        }
        Ok(results)
    }

    #[test]
    fn are_asked_for_ranges_with_credentials_of_the_environment() -> Fallible<()> {
        let server = Server::new(model(1)?, |_, _| Answer::Good)?;
        for (source, path, credentials) in [
            (s3(&server)?, "/bucket/folder/model.cmf", "aws4-hmac-sha256 credential=keyid/"),
            (gs(&server)?, "/bucket/folder%2fmodel%2ecmf", "bearer bearer"),
            (az(&server)?, "/bucket/folder/model.cmf", "sharedkey account:"),
        ] {
            let body = source.get(100..200).map_err(|e| format!("{e:?}"))?;
            assert_eq!((body.start, body.validator.as_deref()), (100, Some("\"first\"")));
            assert_eq!(body.file_bytes, Some(model(1)?.len() as u64));
            let request = server.last().to_ascii_lowercase();
            assert!(request.starts_with(&format!("get {path} http/1.1\r\n")), "{request}");
            assert!(request.contains("range: bytes=100-199\r\n"), "{request}");
            assert!(request.contains(&format!("authorization: {credentials}")), "{request}");
        }
        assert!(server.last().contains("SharedKey"));
        Ok(())
    }

    #[test]
    fn s3_requests_are_signed_for_region_and_service() -> Fallible<()> {
        let server = Server::new(model(1)?, |_, _| Answer::Good)?;
        s3(&server)?.get(0..10).map_err(|e| format!("{e:?}"))?;
        let request = server.last();
        assert!(request.contains("/eu-central-1/s3/aws4_request"), "{request}");
        assert!(request.to_ascii_lowercase().contains("x-amz-date: "), "{request}");
        Ok(())
    }

    #[test]
    fn that_fail_are_asked_again() -> Fallible<()> {
        for wrong in [Answer::Status(500), Answer::Status(429), Answer::Cut(10_000), Answer::Reset(10_000)] {
            let answer = wrong.clone();
            let choose = move |n: usize, _: &Range<u64>| match n.is_multiple_of(3) {
                true => answer.clone(),
                false => Answer::Good,
            };
            for (name, failed) in all(choose)? {
                assert_eq!(failed, None, "{name} with {wrong:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn that_lie_are_not_believed() -> Fallible<()> {
        let sometimes = |n: usize, _: &Range<u64>| if n % 3 == 2 { Answer::Corrupt } else { Answer::Good };
        assert!(all(sometimes)?.iter().all(|(_, failed)| failed.is_none()));
        let always = |_: usize, _: &Range<u64>| Answer::CorruptFrom(300_000);
        assert!(all(always)?.iter().all(|(_, failed)| *failed == Some(ErrorKind::Corrupt)));
        let other = |n: usize, range: &Range<u64>| match n % 3 == 1 && range.start > 0 {
            true => Answer::OtherRange,
            false => Answer::Good,
        };
        assert!(all(other)?.iter().all(|(_, failed)| failed.is_none()));
        Ok(())
    }

    #[test]
    fn that_refuse_end_the_fetch_at_once() -> Fallible<()> {
        for status in [400, 401, 403, 404] {
            for (name, failed) in all(move |_, _| Answer::Status(status))? {
                assert_eq!(failed, Some(ErrorKind::Refused), "{name} with {status}");
            }
        }
        Ok(())
    }

    #[test]
    fn that_cannot_succeed_are_asked_once() -> Fallible<()> {
        for answer in [Answer::Whole, Answer::Unnamed, Answer::Bare] {
            for make in [s3, gs, az] {
                let dir = tempfile::tempdir()?;
                let chosen = answer.clone();
                let server = Server::new(model(1)?, move |_, _| chosen.clone())?;
                let source = make(&server)?;
                let name = source.name();
                let failed = fetch(source, &dir.path().join("model.cmf")).err().ok_or("it came")?;
                assert_eq!(failed.kind(), ErrorKind::Refused, "{name} with {answer:?}: {failed}");
                assert_eq!(server.requests(), 1, "{name} with {answer:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn that_say_no_tag_and_no_time_give_the_file() -> Fallible<()> {
        for (name, failed) in all(|_, _| Answer::NoTag)? {
            assert_eq!(failed, None, "{name}");
        }
        Ok(())
    }

    #[test]
    fn that_are_not_there_are_asked_once() -> Fallible<()> {
        let host = nobody()?;
        let variables = variables(&[
            ("AWS_ACCESS_KEY_ID", "KEYID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_ENDPOINT_URL", &host),
            ("AWS_ALLOW_HTTP", "true"),
        ]);
        let source = Object::with("s3://bucket/model.cmf", variables, &patient())?;
        is_absent(Box::new(source))
    }

    #[test]
    fn are_not_told_secrets_in_the_clear() -> Fallible<()> {
        let server = Server::new(model(1)?, |_, _| Answer::Good)?;
        let variables = variables(&[
            ("AWS_ACCESS_KEY_ID", "KEYID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_ENDPOINT_URL", server.host()),
        ]);
        let source = Object::with("s3://bucket/model.cmf", variables, &options())?;
        assert!(source.get(0..10).is_err());
        assert_eq!(server.requests(), 0);
        Ok(())
    }

    #[test]
    fn addresses_that_make_no_sense_are_refused() {
        for url in ["s3://", "ftp://a/b", "no address", "az://container/model.cmf"] {
            let kind = Object::with(url, [], &options()).err().map(|e| e.kind());
            assert_eq!(kind, Some(ErrorKind::Refused), "{url}");
        }
    }
}
