//! Files on HTTP servers.

use crate::fetch::FetchOptions;
use crate::remote::{Body, Failure, Remote};
use core::ops::Range;
use core::time::Duration;
use ureq::http::{HeaderMap, StatusCode};
use ureq::{Agent, Error};

/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// A file on a server, over HTTP or HTTPS.
pub struct Http {
    url: String,
    agent: Agent,
}

impl Http {
    /// The file at `url`; nothing is asked for yet.
    pub fn new(url: &str, options: &FetchOptions) -> Self {
        Self { url: url.to_owned(), agent: agent(options, true) }
    }
}

/// The client; `redirects` says whether it follows them.
pub(crate) fn agent(options: &FetchOptions, redirects: bool) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(options.stall))
        .timeout_recv_response(Some(options.stall))
        .timeout_per_read(Some(options.stall))
        .max_idle_connections_per_host(options.connections)
        .user_agent(concat!("cmf/", env!("CARGO_PKG_VERSION")));
    let config = if redirects { config } else { config.max_redirects(0) };
    config.build().into()
}

impl Remote for Http {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn get(&self, range: Range<u64>) -> Result<Body, Failure> {
        let last = range.end.saturating_sub(1);
        let request = self.agent.get(&self.url).header("range", format!("bytes={}-{last}", range.start));
        // Bytes as they are stored, whatever a proxy would like.
        let response = request.header("accept-encoding", "identity").call().map_err(failure)?;
        let (parts, body) = response.into_parts();
        let text = |name: &str| header(&parts.headers, name);
        let (start, file_bytes) = match parts.status {
            StatusCode::PARTIAL_CONTENT => {
                let stated = text("content-range")
                    .and_then(content_range)
                    .ok_or_else(|| Failure::Permanent("answered with a part that it does not name".into()))?;
                if stated.0 != range.start {
                    let found = format!("asked for bytes from {}, got them from {}", range.start, stated.0);
                    return Err(Failure::Temporary(found, None));
                }
                stated
            }
            StatusCode::OK => (0, text("content-length").and_then(|length| length.parse().ok())),
            status => return Err(refusal(status, text("retry-after"))),
        };
        if text("content-encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(Failure::Permanent("encodes what it sends, so that ranges mean nothing".into()));
        }
        let validator = text("etag").or_else(|| text("last-modified")).map(str::to_owned);
        Ok(Body { start, file_bytes, validator, reader: Box::new(body.into_reader()) })
    }
}

pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes 0-99/1000`: the first byte, and the length of the file where it is known.
pub(crate) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, length) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, length.trim().parse().ok()))
}

fn refusal(status: StatusCode, retry_after: Option<&str>) -> Failure {
    let text = format!("answered {status}");
    let temporary = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    match temporary {
        true => {
            let pause = retry_after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
            Failure::Temporary(text, pause.map(|pause| pause.min(LONGEST_PAUSE)))
        }
        false => Failure::Permanent(text),
    }
}

/// Why there was no answer.
pub(crate) fn failure(error: Error) -> Failure {
    use std::io::ErrorKind as Io;
    let text = error.to_string();
    match error {
        Error::BadUri(_)
        | Error::Http(_)
        | Error::TooManyRedirects
        | Error::RedirectFailed
        | Error::InvalidProxyUrl
        | Error::Tls(_) => Failure::Permanent(text),
        // Not cut or reset, which are errors of reading.
        Error::Rustls(_) if text.contains("certificate") => Failure::Permanent(text),
        Error::HostNotFound | Error::ConnectionFailed => Failure::Absent(text),
        Error::Io(error) => match error.kind() {
            Io::ConnectionRefused | Io::HostUnreachable | Io::NetworkUnreachable => Failure::Absent(text),
            // The standard library's words where there is no address: it has no kind for that.
            _ if text.contains("failed to lookup address") => Failure::Absent(text),
            _ => Failure::Temporary(text, None),
        },
        _ => Failure::Temporary(text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges_as_servers_write_them() {
        assert_eq!(content_range("bytes 100-199/1000"), Some((100, Some(1000))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        assert_eq!(content_range("bytes */1000"), None);
        assert_eq!(content_range("lines 1-2/3"), None);
        assert_eq!(content_range(""), None);
    }

    #[test]
    fn what_may_pass_is_asked_again() {
        let again = |status| matches!(refusal(status, None), Failure::Temporary(..));
        assert!(again(StatusCode::INTERNAL_SERVER_ERROR) && again(StatusCode::TOO_MANY_REQUESTS));
        assert!(!again(StatusCode::NOT_FOUND) && !again(StatusCode::FORBIDDEN));
        let pause = refusal(StatusCode::SERVICE_UNAVAILABLE, Some("7"));
        assert_eq!(
            pause,
            Failure::Temporary("answered 503 Service Unavailable".into(), Some(Duration::from_secs(7)))
        );
    }
}
