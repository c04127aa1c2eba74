//! Files in buckets, through the crate `object_store`.
//!
//! It signs requests and finds credentials; the HTTP client is the one that [`Http`](crate::Http) uses.
//! Everything blocks: each request has an executor of its own, on the thread that makes it.

use crate::error::{Error, ErrorKind, Result};
use crate::fetch::FetchOptions;
use crate::http::{self, agent};
use crate::remote::{Body, Failure, Remote};
use bytes::Bytes;
use core::cell::Cell;
use core::future::poll_fn;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll};
use futures_core::stream::BoxStream;
use http_body::Frame;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreScheme, RetryConfig,
};
use std::io::Read;
use std::sync::{Arc, Mutex};
use tokio::runtime::{Builder, Runtime};
use ureq::Agent;
use url::Url;

/// What stands for the time of change, and for the tag, of a file of which a server says none.
const UNKNOWN_MODIFIED: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
const UNKNOWN_TAG: &str = "\"cmf-unknown\"";

/// Most bytes that are taken from a connection at once.
const READ_BYTES: usize = 64 << 10;

/// What a request ended in.
#[derive(Default)]
enum Last {
    #[default]
    Nothing,
    /// An answer refused.
    Refused,
    /// An answer with something that is no part of a file, or not one that says what it is.
    Unusable,
    /// An answer that may be used, or is one of a server in trouble.
    Usable,
    /// No answer.
    Failed(Failure),
}

impl Last {
    /// What `answer` is to a request, of a range or not.
    fn of(answer: &ureq::http::response::Parts, of_range: bool) -> Self {
        let text = |name: &str| http::header(&answer.headers, name);
        match answer.status.as_u16() {
            408 | 429 => Last::Usable,
            400..500 => Last::Refused,
            // `object_store` takes no whole file for a part, and no part without its place and length.
            200..300 if of_range => match text("content-range").and_then(http::content_range) {
                Some((_, Some(_))) if text("content-length").is_some() => Last::Usable,
                _ => Last::Unusable,
            },
            _ => Last::Usable,
        }
    }
}

thread_local! {
    /// What the last request of this thread ended in: `object_store` does not tell of all that it turns into
    /// errors.
    static LAST: Cell<Last> = const { Cell::new(Last::Nothing) };
}

/// A file in a bucket of S3 (`s3://`), Google Cloud Storage (`gs://`) or Azure (`az://`, `abfss://`), or a
/// local one (`file://`).
pub struct Object {
    url: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl Object {
    /// The file at `url`, with what the environment says of credentials, regions and endpoints: the
    /// variables that begin with `AWS_`, `GOOGLE_` or `AZURE_`, by the names that `object_store` has for
    /// them. Nothing is asked for yet.
    ///
    /// # Errors
    /// `Refused` for an address or settings that make no sense.
    pub fn new(url: &str, options: &FetchOptions) -> Result<Self> {
        Self::with(
            url,
            std::env::vars_os().filter_map(|(k, v)| k.into_string().ok().zip(v.into_string().ok())),
            options,
        )
    }

    /// [`Object::new`] with these variables in place of the environment.
    ///
    /// # Errors
    /// As [`Object::new`].
    pub fn with(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        options: &FetchOptions,
    ) -> Result<Self> {
        let refused = |problem: String| Error::new(ErrorKind::Refused, url, problem);
        let parsed = Url::parse(url).map_err(|e| refused(e.to_string()))?;
        let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|e| refused(e.to_string()))?;
        let connector = Connector(agent(options, false));
        // Failures are this crate's to deal with.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let variables = |prefix: &'static str| {
            let variables = variables.into_iter().filter(move |(name, _)| name.starts_with(prefix));
            variables.map(|(name, value)| (name.to_ascii_lowercase(), value))
        };
        macro_rules! built {
            ($builder:ty, $prefix:literal) => {{
                let mut builder = <$builder>::new().with_http_connector(connector).with_retry(retry);
                for (name, value) in variables($prefix) {
                    if let Ok(key) = name.parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                builder.with_url(url).build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            }};
        }
        let store = match scheme {
            ObjectStoreScheme::AmazonS3 => built!(AmazonS3Builder, "AWS_"),
            ObjectStoreScheme::GoogleCloudStorage => built!(GoogleCloudStorageBuilder, "GOOGLE_"),
            ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder, "AZURE_"),
            ObjectStoreScheme::Local => Ok(Arc::new(LocalFileSystem::new()) as Arc<dyn ObjectStore>),
            _ => return Err(refused("is in no store that is known".into())),
        };
        Ok(Self { url: url.to_owned(), store: store.map_err(|e| refused(e.to_string()))?, path })
    }
}

impl Remote for Object {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn get(&self, range: Range<u64>) -> core::result::Result<Body, Failure> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|e| Failure::Temporary(e.to_string(), None))?;
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        LAST.take();
        let found = runtime.block_on(self.store.get_opts(&self.path, options)).map_err(failure)?;
        let (start, file_bytes) = (found.range.start, Some(found.meta.size));
        // The time stands for both where the store said neither.
        let modified = Some(found.meta.last_modified).filter(|time| time.timestamp() != 0);
        let tag = found.meta.e_tag.clone().filter(|tag| tag != UNKNOWN_TAG);
        let validator = tag.or_else(|| modified.map(|time| time.to_rfc3339()));
        let reader = Box::new(Blocking { runtime, parts: found.into_stream(), part: Bytes::new() });
        Ok(Body { start, file_bytes, validator, reader })
    }
}

fn failure(error: object_store::Error) -> Failure {
    use object_store::Error as E;
    match (error, LAST.take()) {
        (E::Generic { .. }, Last::Failed(failure)) => failure,
        (error @ E::Generic { .. }, Last::Nothing | Last::Usable) => {
            Failure::Temporary(error.to_string(), None)
        }
        (error, _) => Failure::Permanent(error.to_string()),
    }
}

/// Bytes as they come, for a thread that waits for them.
struct Blocking {
    runtime: Runtime,
    parts: BoxStream<'static, object_store::Result<Bytes>>,
    part: Bytes,
}

impl Read for Blocking {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.part.is_empty() && !out.is_empty() {
            let next = poll_fn(|context| self.parts.as_mut().poll_next(context));
            match self.runtime.block_on(next) {
                Some(part) => self.part = part.map_err(std::io::Error::other)?,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.part.len());
        let part = self.part.split_to(length);
        out.get_mut(..length).unwrap_or(&mut []).copy_from_slice(&part);
        Ok(length)
    }
}

/// The HTTP client.
#[derive(Debug)]
struct Connector(Agent);

#[derive(Debug)]
struct Client {
    agent: Agent,
    /// Whether credentials may go over connections that are not encrypted.
    plain: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let plain = plain.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(HttpClient::new(Client { agent: self.0.clone(), plain }))
    }
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> core::result::Result<HttpResponse, HttpError> {
        if !self.plain && request.uri().scheme_str() == Some("http") {
            let problem =
                "is not encrypted, which AWS_ALLOW_HTTP, GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP allows";
            return Err(HttpError::new_boxed(HttpErrorKind::Unknown, problem.into()));
        }
        let (parts, body) = request.into_parts();
        let of_range = parts.headers.contains_key("range") || parts.headers.contains_key("x-ms-range");
        let request = ureq::http::Request::from_parts(parts, ());
        let answer = match body.is_empty() {
            true => self.agent.run(request),
            false => self.agent.run(request.map(|()| body.as_bytes().map_or_else(Vec::new, |b| b.to_vec()))),
        };
        let answer = answer.map_err(|e| {
            let text = e.to_string();
            LAST.set(Last::Failed(http::failure(e)));
            HttpError::new_boxed(HttpErrorKind::Connect, text.into())
        })?;
        let (mut parts, body) = answer.into_parts();
        LAST.set(Last::of(&parts, of_range));
        // `object_store` needs both of each part. Hashes say what is of the file, whatever the server does not.
        for (name, value) in [("last-modified", UNKNOWN_MODIFIED), ("etag", UNKNOWN_TAG)] {
            if of_range && !parts.headers.contains_key(name) {
                parts.headers.insert(name, ureq::http::HeaderValue::from_static(value));
            }
        }
        let body = HttpResponseBody::new(Answer(Mutex::new(Box::new(body.into_reader()))));
        Ok(ureq::http::Response::from_parts(parts, body))
    }
}

/// The body of an answer. Waits for bytes where it is polled: there is nothing else on the executor.
struct Answer(Mutex<Box<dyn Read + Send>>);

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<core::result::Result<Frame<Bytes>, HttpError>>> {
        let mut bytes = vec![0; READ_BYTES];
        let reader = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        Poll::Ready(match reader.read(&mut bytes) {
            Ok(0) => None,
            Ok(length) => {
                bytes.truncate(length);
                Some(Ok(Frame::data(bytes.into())))
            }
            Err(e) => Some(Err(HttpError::new(HttpErrorKind::Interrupted, e))),
        })
    }
}
