//! Second moments of activations: for each matrix, H = sum over tokens of x xᵀ / tokens of what it
//! reads.

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::eval::Sensitivity;
use crate::layers::{Hidden, Progress};
use crate::llama::{Block, Site, final_norm};
use crate::output;
use crate::text::Windows;
use crate::vocabulary::Vocabulary;
use crate::weights::Weights;
use candle_core::Tensor;
use cmf_converters::moments::{ROW_WEIGHTS_PREFIX, SENSITIVITY_ATTRIBUTE};
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{ArchiveBuilder, DType, NodeData, WriteOptions};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Windows whose moments are held at once before they are summed.
const WINDOWS_AT_ONCE: usize = 4;

/// Most that a token counts for, in tokens of median power. A few tokens bring activations thousands
/// of times larger than all others (Sun et al. 2024, "Massive activations in large language models");
/// what the others bring would not count beside them.
const LARGEST: f32 = 8.0;

/// What the moments were taken from; attribute `cmf.moments.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Tokens that were averaged over.
    pub tokens: usize,
    /// Name of the text file.
    pub text: String,
    /// BLAKE3 hash of the whole text, in hexadecimal digits.
    pub text_blake3: String,
    /// Name of the model.
    pub model: String,
    /// Tokens of a window.
    pub context: usize,
}

impl Note {
    /// What is said of `windows` of the text at `text`, run through the model at `model`.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(model: &Path, text: &Path, windows: &Windows) -> Result<Self> {
        let bytes = std::fs::read(text).map_err(|e| Error::io(text, e))?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            tokens: windows.tokens(),
            text: name(text),
            text_blake3: blake3::hash(&bytes).to_hex().to_string(),
            model: name(model),
            context: windows.context(),
        })
    }
}

/// Runs `windows` through a model, layer by layer, and adds the moments of the input of every
/// matrix, and of the head, to an archive: a dense f32 tensor `[inputs, inputs]` under the name of
/// each matrix. Matrices that read the same input have equal moments, which the archive holds once.
/// With them go what was measured as `sensitivity`, and what errors of each row of the embedding and
/// of the head cost, under [`ROW_WEIGHTS_PREFIX`]. Where the embedding is the head too, what errors cost
/// in both places is stated as one measure, so that its moments are not those of the head's input alone.
///
/// All moments are held until they are written: 4 bytes for each pair of inputs of each site.
///
/// # Errors
/// What `weights` and the layers give.
pub fn collect(
    weights: &dyn Weights,
    config: &Config,
    windows: &Windows,
    note: &Note,
    sensitivity: Option<&Sensitivity>,
    progress: &Progress<'_>,
) -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    let mut hidden = Hidden::embed(weights, config, windows)?;
    for layer in 0..config.layers {
        let block = Block::load(weights, config, layer)?;
        let mut sums = Site::ALL.map(|_| Sum::default());
        hidden.through_observed(&block, WINDOWS_AT_ONCE, &product, &mut |site, moments| {
            let place = Site::ALL.iter().position(|s| *s == site).and_then(|i| sums.get_mut(i));
            place.map_or(Ok(()), |sum| sum.add(&moments))
        })?;
        let sums = Site::ALL.into_iter().zip(sums);
        for (site, sum) in sums.filter(|(site, _)| Site::of(config).contains(site)) {
            let node = sum.node(windows.tokens())?;
            for matrix in site.matrices() {
                let name = format!("model.layers.{layer}.{matrix}.weight");
                add(&mut builder, weights.stored_name(&name), node.clone());
            }
        }
        progress(layer as u64 + 1, config.layers as u64);
    }
    let norm = final_norm(weights, config)?;
    let mut sum = Sum::default();
    let mut vocabulary = Vocabulary::new(weights, config, windows.tokens())?;
    for states in hidden.states() {
        let states = norm.forward(states)?;
        sum.add(&product(&states)?)?;
        vocabulary.add(&states)?;
    }
    let of_rows = vocabulary.rows(&sum.mean(windows.tokens())?, sensitivity.map(|s| s.embedding))?;
    let n = config.hidden as u64;
    let head = dense::pack_values(DType::F32, n, n, &of_rows.moments)?;
    add(&mut builder, weights.stored_name(config.head_name()), head);
    for (name, row_weights) in of_rows.weights {
        let node = dense::pack_values(DType::F32, 1, row_weights.len() as u64, &row_weights)?;
        add(&mut builder, format!("{ROW_WEIGHTS_PREFIX}{}", weights.stored_name(name)), node);
    }
    if let Some(Sensitivity { matrices, .. }) = sensitivity {
        let matrices = matrices.iter().map(|(name, value)| (name.as_str(), *value));
        let all: BTreeMap<_, _> = matrices
            .chain(of_rows.sensitivity)
            .map(|(name, value)| (weights.stored_name(name), value))
            .collect();
        let json = serde_json::to_vec_pretty(&all).map_err(|e| Error::argument(e.to_string()))?;
        builder.attribute(SENSITIVITY_ATTRIBUTE, "application/json", json);
    }
    let json = serde_json::to_vec_pretty(note).map_err(|e| Error::argument(e.to_string()))?;
    builder.attribute("cmf.moments.json", "application/json", json);
    Ok(builder)
}

/// Writes an archive of moments to `path`.
///
/// # Errors
/// `BadArgument` when `path` exists and is not to be replaced, `Io`.
pub fn write(builder: &ArchiveBuilder, path: &Path, force: bool) -> Result<u64> {
    let layout = builder.layout()?;
    output::write(path, force, |file| {
        layout.write(file, |segment, _| {
            Err(std::io::Error::other(format!("segment {} is not in memory", segment.key)))
        })
    })?;
    Ok(layout.file_bytes())
}

/// xᵀ x of activations `[tokens, inputs]`, no token of which counts for more than [`LARGEST`] of
/// median size.
fn product(x: &Tensor) -> Result<Tensor> {
    let powers = x.sqr()?.sum(1)?.to_vec1::<f32>()?;
    let mut sorted = powers.clone();
    sorted.sort_by(f32::total_cmp);
    let limit = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0) * LARGEST;
    let factor = |power: &f32| if *power > limit && limit > 0.0 { (limit / power).sqrt() } else { 1.0 };
    let factors: Vec<f32> = powers.iter().map(factor).collect();
    let x = x.broadcast_mul(&Tensor::from_vec(factors, (powers.len(), 1), x.device())?)?;
    Ok(x.t()?.matmul(&x)?)
}

fn add(builder: &mut ArchiveBuilder, name: String, node: NodeData) {
    let shape = vec![node.rows, node.cols];
    let content = Content::Matrices(vec![MatrixEntry::from_node(node)]);
    builder.tensor(TensorEntry { name, dtype: DType::F32, shape, content });
}

/// A sum of products, in f64.
#[derive(Default)]
struct Sum {
    inputs: usize,
    values: Vec<f64>,
}

impl Sum {
    fn add(&mut self, product: &Tensor) -> Result<()> {
        let products = product.flatten_all()?.to_vec1::<f32>()?;
        self.inputs = product.dim(0)?;
        self.values.resize(products.len(), 0.0);
        let added = self.values.par_chunks_mut(1 << 16).zip(products.par_chunks(1 << 16));
        added.for_each(|(sums, products)| {
            for (sum, product) in sums.iter_mut().zip(products) {
                *sum += f64::from(*product);
            }
        });
        Ok(())
    }

    /// The mean over tokens, as a node.
    fn node(&self, tokens: usize) -> Result<NodeData> {
        let n = self.inputs as u64;
        Ok(dense::pack_values(DType::F32, n, n, &self.mean(tokens)?)?)
    }

    /// The mean over tokens, symmetric to the bit.
    fn mean(&self, tokens: usize) -> Result<Vec<f32>> {
        let n = self.inputs;
        let factor = 1.0 / tokens.max(1) as f64;
        let value = |i: usize, j: usize| {
            let (low, high) = (i.min(j), i.max(j));
            self.values.get(low * n + high).map_or(0.0, |sum| (sum * factor) as f32)
        };
        let values: Vec<f32> = (0..n * n).map(|k| value(k / n, k % n)).collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::new(ErrorKind::Compute, "activations are not finite"));
        }
        Ok(values)
    }
}
