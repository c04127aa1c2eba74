//! Models as files: `.cmf` and safetensors with the same tensors.

use crate::data;
use anyhow::Result;
use cmf_converters::convert::{ConvertOptions, convert};
use cmf_converters::recipe::Recipe;
use cmf_converters::source;
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{ArchiveBuilder, DType};
use safetensors::tensor::{Dtype, TensorView};
use std::path::PathBuf;
use tempfile::TempDir;

/// Name and shape of an f32 tensor.
pub(crate) type Plan = Vec<(String, Vec<usize>)>;

/// `count` small tensors of a mixture-of-experts model.
pub(crate) fn small(count: usize) -> Plan {
    let name = |i: usize| format!("model.layers.{}.mlp.experts.{}.up_proj.weight", i / 512, i % 512);
    (0..count).map(|i| (name(i), vec![2, 4])).collect()
}

/// The 272 tensors of a Llama of 135 million weights: 538 MB.
pub(crate) fn llama() -> Plan {
    let (hidden, wide, kv) = (576, 1536, 192);
    let mut plan = vec![
        ("model.embed_tokens.weight".to_owned(), vec![49_152, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..30 {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("mlp.down_proj", vec![hidden, wide]),
            ("mlp.gate_proj", vec![wide, hidden]),
            ("mlp.up_proj", vec![wide, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
        ] {
            plan.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    plan
}

/// `count` matrices `[rows, cols]`.
pub(crate) fn matrices(count: usize, rows: usize, cols: usize) -> Plan {
    (0..count).map(|i| (format!("model.layers.{i}.mlp.up_proj.weight"), vec![rows, cols])).collect()
}

/// Elements of each tensor, `fill` giving those of tensor `index`.
pub(crate) struct Model {
    plan: Plan,
    elements: Vec<Vec<u8>>,
}

impl Model {
    /// Tensors of random bytes: for what does not look at values.
    pub(crate) fn random(plan: Plan) -> Self {
        Self::new(plan, |seed, count| data::bytes(seed, 4 * count))
    }

    /// Tensors of weights.
    pub(crate) fn weights(plan: Plan) -> Self {
        Self::new(plan, |seed, count| bytemuck::cast_slice(&data::weights(seed, count)).to_vec())
    }

    fn new(plan: Plan, fill: impl Fn(u64, usize) -> Vec<u8>) -> Self {
        let elements =
            plan.iter().zip(1..).map(|((_, shape), seed)| fill(seed, shape.iter().product())).collect();
        Self { plan, elements }
    }

    /// The bytes of a `.cmf` that holds the elements as they are.
    pub(crate) fn cmf(&self) -> Result<Vec<u8>> {
        let mut builder = ArchiveBuilder::default();
        for ((name, shape), bytes) in self.plan.iter().zip(&self.elements) {
            let (cols, rows) = match shape.split_last() {
                Some((cols, rows)) => (*cols as u64, rows.iter().product::<usize>() as u64),
                None => (1, 1),
            };
            let node = dense::pack(DType::F32, rows, cols, bytes.clone())?;
            builder.tensor(TensorEntry {
                name: name.clone(),
                dtype: DType::F32,
                shape: shape.iter().map(|n| *n as u64).collect(),
                content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
            });
        }
        Ok(builder.to_vec()?)
    }

    /// The bytes of a safetensors file with the same tensors.
    pub(crate) fn safetensors(&self) -> Result<Vec<u8>> {
        let views = self.plan.iter().zip(&self.elements).map(|((name, shape), bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        });
        Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
    }
}

/// A `.cmf` made of f32 weights as a built-in recipe says, in a folder of its own.
pub(crate) fn converted(plan: Plan, recipe: &str) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("model.cmf"));
    std::fs::write(&input, Model::weights(plan).safetensors()?)?;
    let options = ConvertOptions::new(Recipe::load(recipe)?);
    convert(source::open(&input)?.as_ref(), &output, &options, &|_| {})?;
    Ok((folder, output))
}

/// A file in memory that cannot change, so that mapping it needs no promise from anybody.
#[cfg(target_os = "linux")]
pub(crate) struct Sealed(std::fs::File);

#[cfg(target_os = "linux")]
impl Sealed {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Result<Self> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use std::io::Write;
        let descriptor = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = std::fs::File::from(descriptor);
        file.write_all(bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        Ok(Self(file))
    }

    /// A path that opens it.
    pub(crate) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Bytes of maps of the file that [`Sealed::new`] called `name` that this process has touched.
#[cfg(target_os = "linux")]
pub(crate) fn touched_bytes(name: &str) -> Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let (mut inside, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.split_once(' ') {
            Some((field, rest)) if field.ends_with(':') => {
                if inside && field == "Rss:" {
                    sum += 1024 * rest.trim().trim_end_matches(" kB").parse::<u64>()?;
                }
            }
            _ => inside = line.contains(&format!("/memfd:{name} ")),
        }
    }
    Ok(sum)
}
