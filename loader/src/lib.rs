//! Opens `.cmf` files: tensors by name, rows, zero-copy slices, verification, shards and deltas.
//!
//! ```no_run
//! use cmf_loader::{Levels, Model};
//!
//! # fn main() -> Result<(), cmf_loader::Error> {
//! let model = Model::open("model.cmf")?;
//! for tensor in model.tensors() {
//!     let mut values = vec![0.0; tensor.elements() as usize];
//!     tensor.decode(Levels::All, &mut values)?;
//! }
//! assert!(model.verify_all(|_done, _total| {}).is_ok());
//! # Ok(())
//! # }
//! ```
//!
//! # What opening costs
//!
//! Opening reads the header and the directory into memory and checks them whole. Payload is not
//! touched: it is read when it is decoded, sliced or verified.
//!
//! # Budgets
//!
//! A file states an order of its *units*, blocks of rows at one level. A [`Budget`] is met by the
//! longest prefix of that order that fits: see [`plan`](mod@plan).
//!
//! ```no_run
//! use cmf_loader::{Budget, Levels, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("model.cmf")?;
//! let plan = model.plan(Budget::parse("90MiB")?)?;
//! println!("{} of at most {} bytes", plan.resident_bytes(), plan.budget_bytes());
//! for tensor in model.tensors() {
//!     let mut values = vec![0.0; tensor.elements() as usize];
//!     tensor.decode(Levels::Plan(&plan), &mut values)?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Files that change
//!
//! With [`Backend::Mmap`], the default, payload is borrowed from a read-only shared map. **A
//! file must not be written to or cut while it is mapped**: another process that does so changes
//! the values under the reader, and touching what was cut off ends the process with SIGBUS. What
//! this crate does about it: writers of CMF write to a temporary file and rename it, which leaves a
//! map whole; the directory is a copy, which cannot change once it is checked; verifying asks the
//! system to bring pages in before they are touched, which turns a cut file into an error; every
//! other access first asks for the file's length. What remains is the time between that question
//! and the access, and slices and open tensors that are kept. Where that is too little (a network
//! file system, a directory that strangers write to) take [`Backend::Pread`], which reads into
//! memory of its own and reports a cut file as an error always. [`Model::check_unchanged`] says
//! whether a file was cut, written to or replaced since it was opened.
//!
//! # Trust
//!
//! Any bytes are safe to open, decode and verify: damaged or hostile ones give errors, or wrong
//! values where nothing but a hash can tell. Sizes that a file states are held against
//! [`OpenOptions::limits`] before anything is allocated. Only [`Model::verify_all`] and its parts
//! read the hashes.
//!
//! # Other files
//!
//! A model may lie in several files: shards, which hold tensors of it, and a base, to whose tensors
//! the terms here are added. They are found by bare name in the directory of the file that refers
//! to them, symbolic links there are not followed, and their length and identity must be the
//! stated ones. They are opened when the first tensor needs them.

mod attribute;
mod error;
mod label;
mod mmap;
mod model;
mod open;
mod opened;
pub mod plan;
mod positional;
mod references;
pub mod resident;
mod source;
mod stamp;
mod stored;
mod summary;
mod tensor;
mod verify;

pub use attribute::Attribute;
pub use error::{Error, ErrorKind, Result};
pub use model::Model;
pub use open::{Backend, OpenOptions};
pub use opened::OpenTensor;
pub use plan::{BelowMinimum, Budget, Plan, Schedule, Want, plan};
pub use positional::read_exact_at;
pub use references::{Reference, ReferenceKind};
pub use resident::{Resident, Snapshot};
pub use source::FileSource;
pub use summary::{TensorSummary, TermSummary, Totals};
pub use tensor::{Levels, MatrixShape, Tensor};
pub use verify::{Verification, VerifyOptions};
