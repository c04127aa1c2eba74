//! Gets `.cmf` files from elsewhere: resumable, verified piece by piece, usable while they grow.
//!
//! ```no_run
//! use cmf_sources::{Fetch, FetchOptions, Http};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let remote = Http::new("https://example.com/model.cmf", &FetchOptions::default());
//! let fetch = Fetch::begin(Box::new(remote), "model.cmf".as_ref(), FetchOptions::default())?;
//! fetch.run(&|progress| eprintln!("{} of {} bytes", progress.have_bytes, progress.wanted_bytes))?;
//! println!("{}", fetch.finish()?.display());
//! # Ok(())
//! # }
//! ```
//!
//! # The file that grows
//!
//! `model.cmf.part` has the length of the whole file from the first moment on, with holes; header and
//! directory come first, then what every model needs, then units in the order of the schedule. It
//! is a `.cmf` that can be opened, and [`Fetch::arrived`] says how many steps of its schedule can be
//! read. When all has come it is renamed.
//!
//! Nothing beside it says which parts are there: the hashes in the file do. A fetch that goes on holds
//! what lies in the file against them, so that it does not matter how the one before ended, nor who
//! wrote to the file since.
//!
//! # What a server may do
//!
//! Every chunk group is held against its hash before it is written. The directory has the hash that
//! the header states, and the header is that of the first answer: a server that has another file
//! under the same name is found out by its validator (`ETag`, else `Last-Modified`), by a length,
//! or by a hash. What fails is asked for again, with growing pauses, until nothing new has come for
//! [`FetchOptions::attempts`] requests in a row; a pause between two bytes longer than
//! [`FetchOptions::stall`] counts as a failure. A server that answers ranges with the whole file is
//! read in one stream.
//!
//! # Sources
//!
//! [`Remote`] is what a fetch needs of a source: [`Http`] (servers), [`Memory`] (bytes in memory), and with
//! the feature `object-store` `Object` (buckets of S3, GCS and Azure, local files). [`open`] chooses by the
//! address.

mod address;
mod error;
mod fetch;
mod groups;
mod http;
mod memory;
#[cfg(feature = "object-store")]
mod object;
mod queue;
mod remote;

pub use address::{is_address, open};
pub use error::{Error, ErrorKind, Result};
pub use fetch::{Fetch, FetchOptions, Progress};
pub use http::Http;
pub use memory::Memory;
#[cfg(feature = "object-store")]
pub use object::Object;
pub use remote::{Body, Failure, Remote};
