//! The key-value section of a GGUF file: checked once, kept as the bytes that it is.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Limits;
use super::head::Head;
use super::read_at::ReadAt;
use super::value::{Value, ValueType};
use crate::error::{Error, Result};

/// Smallest stored size of a key and its value: length, one byte of key, type, one byte of value.
const LEAST_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// Checked metadata in the order of the file.
#[derive(Debug, Clone)]
pub struct Metadata {
    raw: Arc<[u8]>,
    entries: Vec<Entry>,
    by_key: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    ty: ValueType,
    /// Where the value lies in `raw`.
    bytes: Range<usize>,
}

impl Metadata {
    pub(super) fn read<R: ReadAt + ?Sized>(
        head: &mut Head<'_, R>,
        count: u64,
        limits: &Limits,
    ) -> Result<Self> {
        let start = head.position();
        let mut entries = Vec::new();
        let mut by_key = HashMap::new();
        for _ in 0..count {
            let entry = read_entry(head, start, limits)?;
            if by_key.insert(entry.key.clone(), entries.len()).is_some() {
                return Err(Error::bad_file(format!(
                    "metadata key `{}` occurs twice",
                    entry.key.escape_debug()
                ))
                .at(head.position()));
            }
            entries.push(entry);
        }
        Ok(Self { raw: head.since(start).into(), entries, by_key })
    }

    /// Checks the bytes of a whole section, [`Metadata::raw`], of `count` entries.
    ///
    /// # Errors
    /// `BadFile` for whatever breaks the format, `Limit` beyond `limits`.
    pub fn parse(raw: &[u8], count: u64, limits: &Limits) -> Result<Self> {
        let mut head = Head::new(raw, limits.head_bytes)?;
        check_entry_count(&head, count)?;
        Self::read(&mut head, count, limits)
    }

    /// The bytes of the whole section as they stand in the file: `len()` entries of key and value.
    pub fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.value(self.entries.get(*self.by_key.get(key)?)?)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().filter_map(|entry| Some((entry.key.as_str(), self.value(entry)?)))
    }

    /// A JSON object of all values, rendered as [`Value::to_json`] says.
    pub fn to_json(&self, array_limit: usize) -> serde_json::Value {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_json(array_limit))).collect()
    }

    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        Value::parse(entry.ty, &mut self.raw.get(entry.bytes.clone())?)
    }
}

/// Refuses a number of entries that the rest of the file cannot hold.
pub(super) fn check_entry_count<R: ReadAt + ?Sized>(head: &Head<'_, R>, count: u64) -> Result<()> {
    head.check_count(count, LEAST_ENTRY_BYTES, "metadata count")
}

fn read_entry<R: ReadAt + ?Sized>(
    head: &mut Head<'_, R>,
    section_start: u64,
    limits: &Limits,
) -> Result<Entry> {
    let key = read_name(head, limits, "metadata key")?;
    let ty = read_type(head)?;
    let relative = |offset: u64| usize::try_from(offset.saturating_sub(section_start)).unwrap_or(usize::MAX);
    let start = head.position();
    skip_value(head, ty, limits.array_depth)?;
    let bytes = relative(start)..relative(head.position());
    Ok(Entry { key, ty, bytes })
}

/// Reads a length and that many bytes of UTF-8: at least one, at most the limit, no NUL.
pub(super) fn read_name<R: ReadAt + ?Sized>(
    head: &mut Head<'_, R>,
    limits: &Limits,
    what: &str,
) -> Result<String> {
    let at = head.position();
    let len = head.u64(what)?;
    if len > limits.name_bytes && len <= head.remaining() {
        return Err(Error::limit(what)
            .at(at)
            .expected(format!("at most {} bytes", limits.name_bytes))
            .found(len));
    }
    let bytes = head.take(len, what)?;
    let name = str::from_utf8(bytes).map_err(|error| {
        Error::bad_file(what).at(at).expected("UTF-8").found("other bytes").caused_by(error)
    })?;
    if name.is_empty() || name.contains('\0') {
        return Err(Error::bad_file(what)
            .at(at)
            .expected("a name without NUL")
            .found(format!("`{}`", name.escape_debug())));
    }
    Ok(name.to_owned())
}

fn read_type<R: ReadAt + ?Sized>(head: &mut Head<'_, R>) -> Result<ValueType> {
    let at = head.position();
    let id = head.u32("metadata type")?;
    ValueType::from_id(id)
        .ok_or_else(|| Error::bad_file("metadata type").at(at).expected("0 to 12").found(id))
}

/// Steps over a value, checking all lengths inside it.
fn skip_value<R: ReadAt + ?Sized>(head: &mut Head<'_, R>, ty: ValueType, depth: u32) -> Result<()> {
    let what = "metadata value";
    if let Some(size) = ty.fixed_bytes() {
        head.take(size, what)?;
        return Ok(());
    }
    if ty == ValueType::String {
        let len = head.u64(what)?;
        head.take(len, what)?;
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::limit("metadata arrays are nested too deeply").at(head.position()));
    };
    let element = read_type(head)?;
    let len = head.u64(what)?;
    if let Some(size) = element.fixed_bytes() {
        head.check_count(len, size, "metadata array length")?;
        head.take(len.saturating_mul(size), what)?;
        return Ok(());
    }
    // A string has 8 bytes of length; an array 12 of type and length.
    head.check_count(len, if element == ValueType::String { 8 } else { 12 }, "metadata array length")?;
    for _ in 0..len {
        skip_value(head, element, depth)?;
    }
    Ok(())
}
