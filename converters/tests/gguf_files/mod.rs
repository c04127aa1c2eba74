//! Small GGUF files made field by field, so that each field can be wrong.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests, each of which uses a part")]

/// What a file says and holds. `Default` is a good file with metadata of every kind, and a tensor
/// of each of several types.
#[derive(Clone)]
pub struct Handmade {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub entry_count: Option<u64>,
    pub entries: Vec<Entry>,
    pub tensors: Vec<Tensor>,
    /// What offsets and data are padded to, whatever the metadata say.
    pub alignment: usize,
    /// Bytes of data missing at the end.
    pub missing_bytes: usize,
}

#[derive(Clone)]
pub struct Entry {
    pub key_len: Option<u64>,
    pub key: Vec<u8>,
    pub ty: u32,
    pub value: Vec<u8>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name_len: Option<u64>,
    pub name: Vec<u8>,
    pub dim_count: Option<u32>,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub offset: Option<u64>,
    /// Bytes of data that the file really has.
    pub data_bytes: usize,
}

impl Entry {
    pub fn new(key: &str, ty: u32, value: impl Into<Vec<u8>>) -> Self {
        Self { key_len: None, key: key.into(), ty, value: value.into() }
    }

    pub fn u32(key: &str, value: u32) -> Self {
        Self::new(key, 4, value.to_le_bytes())
    }

    pub fn u16(key: &str, value: u16) -> Self {
        Self::new(key, 2, value.to_le_bytes())
    }

    pub fn array(key: &str, element: u32, len: u64, elements: &[u8]) -> Self {
        Self::new(key, 9, array(element, len, elements))
    }
}

impl Tensor {
    pub fn new(name: &str, ty: u32, dims: &[u64], data_bytes: usize) -> Self {
        Self {
            name_len: None,
            name: name.into(),
            dim_count: None,
            dims: dims.into(),
            ty,
            offset: None,
            data_bytes,
        }
    }
}

/// Bytes of an array value.
pub fn array(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// Bytes of a string value.
pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Default for Handmade {
    fn default() -> Self {
        let strings = [string("a"), string(""), string("longer")].concat();
        let nested = [array(0, 2, &[1, 2]), array(8, 1, &string("b"))].concat();
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![
                Entry::new("u8", 0, [1]),
                Entry::new("i8", 1, [1]),
                Entry::new("u16", 2, [1; 2]),
                Entry::new("i16", 3, [1; 2]),
                Entry::u32("u32", 7),
                Entry::new("i32", 5, [1; 4]),
                Entry::new("f32", 6, 1.5f32.to_le_bytes()),
                Entry::new("bool", 7, [1]),
                Entry::new("string", 8, string("text")),
                Entry::array("strings", 8, 3, &strings),
                Entry::array("numbers", 4, 2, &[0; 8]),
                Entry::array("nested", 9, 2, &nested),
                Entry::new("u64", 10, [1; 8]),
                Entry::new("i64", 11, [1; 8]),
                Entry::new("f64", 12, 1.5f64.to_le_bytes()),
            ],
            tensors: vec![
                Tensor::new("f32", 0, &[3], 12),
                Tensor::new("q4_0", 2, &[64, 3], 108),
                Tensor::new("i8", 24, &[2, 3, 2, 2], 24),
                Tensor::new("q2_k", 10, &[256], 84),
                Tensor::new("scalar", 0, &[], 4),
            ],
            alignment: 32,
            missing_bytes: 0,
        }
    }
}

impl Handmade {
    /// A file without metadata and tensors.
    pub fn empty() -> Self {
        Self { entries: vec![], tensors: vec![], ..Self::default() }
    }

    /// A file with this one tensor.
    pub fn tensor(tensor: Tensor) -> Self {
        Self { tensors: vec![tensor], ..Self::empty() }
    }

    /// A file with this one metadata entry.
    pub fn entry(entry: Entry) -> Self {
        Self { entries: vec![entry], ..Self::empty() }
    }

    /// The file: data count up from 0.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            out.extend(entry.key_len.unwrap_or(entry.key.len() as u64).to_le_bytes());
            out.extend(&entry.key);
            out.extend(entry.ty.to_le_bytes());
            out.extend(&entry.value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(tensor.name_len.unwrap_or(tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            out.extend(tensor.dim_count.unwrap_or(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset as u64).to_le_bytes());
            offset += tensor.data_bytes.next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend((0..offset).map(|i| i as u8));
        out.truncate(out.len() - self.missing_bytes);
        out
    }
}
