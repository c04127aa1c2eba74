//! Files that must be refused: one broken rule each.

mod bases;
mod encodings;
mod head;
mod names;
mod payload;
mod records;
mod segments;
mod tensors;

use super::case::{FailsAt, Files};
use super::image::Image;
use cmf_format::Result;

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut out = Rejects { files };
    head::add(&mut out)?;
    names::add(&mut out)?;
    tensors::add(&mut out)?;
    records::add(&mut out)?;
    segments::add(&mut out)?;
    payload::add(&mut out)?;
    encodings::add(&mut out)
}

struct Rejects<'f> {
    files: &'f mut Files,
}

impl Rejects<'_> {
    /// A file that cannot be opened.
    fn parse(&mut self, kind: &str, name: &str, why: &str, bytes: Vec<u8>) {
        self.at(FailsAt::Parse, kind, name, why, bytes);
    }

    /// A directory that breaks a rule; its hash is stated anew.
    fn structure(&mut self, name: &str, why: &str, image: Image) {
        self.parse("structure", name, why, image.seal());
    }

    /// A file that fails at a later stage.
    fn at(&mut self, fails_at: FailsAt<'_>, kind: &str, name: &str, why: &str, bytes: Vec<u8>) {
        super::case::reject(self.files, kind, name, fails_at, why, bytes);
    }
}
