//! Addresses: which source has what.

use crate::error::{Error, ErrorKind, Result};
use crate::fetch::FetchOptions;
use crate::http::Http;
use crate::remote::Remote;

/// Schemes of files on servers.
const SERVERS: [&str; 2] = ["http", "https"];
/// Schemes of files in object stores, for which the feature `object-store` is needed.
const STORES: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file"];

/// Whether `text` is an address: it begins with the scheme of a source, of one that this build lacks too.
pub fn is_address(text: &str) -> bool {
    scheme(text).is_some_and(|scheme| SERVERS.contains(&scheme) || STORES.contains(&scheme))
}

fn scheme(text: &str) -> Option<&str> {
    Some(text.split_once("://")?.0)
}

/// The source that has the file at `address`: `http://`, `https://`; with the feature `object-store` also
/// `s3://`, `gs://`, `az://`, `abfss://` and `file://`, with credentials of the environment. Nothing is
/// asked for yet.
///
/// # Errors
/// `Refused` for an address of no source, of one that this build lacks, or with settings that make no
/// sense.
pub fn open(address: &str, options: &FetchOptions) -> Result<Box<dyn Remote>> {
    match scheme(address) {
        Some(scheme) if SERVERS.contains(&scheme) => Ok(Box::new(Http::new(address, options))),
        Some(scheme) if STORES.contains(&scheme) => store(address, options),
        _ => {
            let all = [SERVERS.as_slice(), STORES.as_slice()].concat().join(", ");
            let problem = format!("expected an address that begins with one of {all} and ://");
            Err(Error::new(ErrorKind::Refused, address, problem))
        }
    }
}

#[cfg(feature = "object-store")]
fn store(address: &str, options: &FetchOptions) -> Result<Box<dyn Remote>> {
    Ok(Box::new(crate::object::Object::new(address, options)?))
}

#[cfg(not(feature = "object-store"))]
fn store(address: &str, _: &FetchOptions) -> Result<Box<dyn Remote>> {
    let problem = "object stores are not in this build: it lacks the feature `object-store`";
    Err(Error::new(ErrorKind::Refused, address, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_addresses_from_paths() {
        for address in ["http://a/b", "https://a/b", "s3://a/b", "gs://a/b", "az://a/b", "file:///a/b"] {
            assert!(is_address(address), "{address}");
        }
        for path in ["model.cmf", "http:/a", "ftp://a/b", "C:\\a", "://", ""] {
            assert!(!is_address(path), "{path}");
        }
        let problem = |address| open(address, &FetchOptions::default()).err().map(|e| e.kind());
        assert_eq!(problem("ftp://a/b"), Some(ErrorKind::Refused));
        assert_eq!(problem("http://a/b"), None);
    }

    #[cfg(not(feature = "object-store"))]
    #[test]
    fn names_the_feature_that_is_lacking() {
        let error = open("s3://bucket/key", &FetchOptions::default()).err().map(|e| e.to_string());
        assert!(error.is_some_and(|text| text.contains("feature `object-store`")));
    }
}
