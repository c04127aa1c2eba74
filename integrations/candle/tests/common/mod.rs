//! A tiny random Llama, in a `.cmf`, and its forward pass once more in f64, written from the papers.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests, each of which uses a part")]
#![allow(clippy::expect_used, reason = "a model that cannot be made fails the test")]

use cmf_format::encoding::{dense, grouped};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, NodeData};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub type TestResult = Result<(), Box<dyn std::error::Error>>;

pub const VOCAB: usize = 40;
pub const HIDDEN: usize = 24;
pub const WIDE: usize = 48;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;
pub const LAYERS: usize = 2;
pub const EXPERTS: usize = 8;
pub const PER_TOKEN: usize = 2;
const EPS: f64 = 1e-5;
const THETA: f64 = 10_000.0;

/// Which member of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Llama,
    Qwen2,
    Qwen3,
    Mixtral,
    Qwen3Moe,
}

impl Kind {
    /// What a layer calls its mixture, and an expert its gate, up and down matrix.
    pub fn mixture(self) -> Option<(&'static str, [&'static str; 3])> {
        match self {
            Kind::Mixtral => Some(("block_sparse_moe", ["w1", "w3", "w2"])),
            Kind::Qwen3Moe => Some(("mlp", ["gate_proj", "up_proj", "down_proj"])),
            _ => None,
        }
    }

    fn qk_norm(self) -> bool {
        matches!(self, Kind::Qwen3 | Kind::Qwen3Moe)
    }
}

/// The weights of a tiny model, by name.
pub struct Tiny {
    pub kind: Kind,
    pub tied: bool,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// A number from -1 to 1.
fn noise(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*seed >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

impl Tiny {
    pub fn new(kind: Kind, tied: bool) -> Self {
        let mut tensors = BTreeMap::new();
        let mut seed = 42;
        let mut add = |name: String, shape: &[usize], scale: f32, offset: f32| {
            let n = shape.iter().product();
            let values = (0..n).map(|_| offset + scale * noise(&mut seed)).collect();
            tensors.insert(name, (shape.to_vec(), values));
        };
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 1.0, 0.0);
        add("model.norm.weight".into(), &[HIDDEN], 0.3, 1.0);
        if !tied {
            add("lm_head.weight".into(), &[VOCAB, HIDDEN], 0.5, 0.0);
        }
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            add(name("input_layernorm.weight"), &[HIDDEN], 0.3, 1.0);
            add(name("post_attention_layernorm.weight"), &[HIDDEN], 0.3, 1.0);
            for (part, outputs) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(name(&format!("self_attn.{part}.weight")), &[outputs, HIDDEN], 0.4, 0.0);
                if kind == Kind::Qwen2 {
                    add(name(&format!("self_attn.{part}.bias")), &[outputs], 0.2, 0.0);
                }
            }
            if kind.qk_norm() {
                add(name("self_attn.q_norm.weight"), &[HEAD_DIM], 0.3, 1.0);
                add(name("self_attn.k_norm.weight"), &[HEAD_DIM], 0.3, 1.0);
            }
            add(name("self_attn.o_proj.weight"), &[HIDDEN, q], 0.3, 0.0);
            let mut mlp = |prefix: &str, [gate, up, down]: [&str; 3]| {
                add(name(&format!("{prefix}.{gate}.weight")), &[WIDE, HIDDEN], 0.4, 0.0);
                add(name(&format!("{prefix}.{up}.weight")), &[WIDE, HIDDEN], 0.4, 0.0);
                add(name(&format!("{prefix}.{down}.weight")), &[HIDDEN, WIDE], 0.3, 0.0);
            };
            match kind.mixture() {
                None => mlp("mlp", ["gate_proj", "up_proj", "down_proj"]),
                Some((block, matrices)) => {
                    (0..EXPERTS).for_each(|e| mlp(&format!("{block}.experts.{e}"), matrices));
                    add(name(&format!("{block}.gate.weight")), &[EXPERTS, HIDDEN], 0.5, 0.0);
                }
            }
        }
        Self { kind, tied, tensors }
    }

    pub fn config(&self) -> serde_json::Value {
        let model_type = match self.kind {
            Kind::Llama => "llama",
            Kind::Qwen2 => "qwen2",
            Kind::Qwen3 => "qwen3",
            Kind::Mixtral => "mixtral",
            Kind::Qwen3Moe => "qwen3_moe",
        };
        let mut config = serde_json::json!({
            "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": WIDE,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM, "vocab_size": VOCAB, "rms_norm_eps": EPS, "rope_theta": THETA,
            "hidden_act": "silu", "tie_word_embeddings": self.tied, "max_position_embeddings": 64,
            "eos_token_id": 1
        });
        if let Some((block, _)) = self.kind.mixture() {
            config["num_experts_per_tok"] = PER_TOKEN.into();
            match block {
                "mlp" => {
                    config["num_experts"] = EXPERTS.into();
                    config["moe_intermediate_size"] = WIDE.into();
                    config["intermediate_size"] = (3 * WIDE).into();
                }
                _ => config["num_local_experts"] = EXPERTS.into(),
            }
        }
        config
    }

    pub fn builder(&self, encode: impl Fn(&str, &[usize], &[f32]) -> MatrixEntry) -> ArchiveBuilder {
        let mut builder = ArchiveBuilder::default();
        for (name, (shape, values)) in &self.tensors {
            builder.tensor(TensorEntry {
                name: name.clone(),
                dtype: DType::F32,
                shape: shape.iter().map(|n| *n as u64).collect(),
                content: Content::Matrices(vec![encode(name, shape, values)]),
            });
        }
        builder.attribute("config.json", "application/json", self.config().to_string().into_bytes());
        builder.attribute("tokenizer.json", "application/json", tokenizer().to_string().into_bytes());
        builder
    }

    /// A `.cmf` of plain f32 tensors.
    pub fn plain(&self) -> ArchiveBuilder {
        self.builder(|_, shape, values| MatrixEntry::from_node(node(shape, values)))
    }

    /// A `.cmf` whose matrices are rotated and have three levels in blocks of rows: 4-bit integers,
    /// the same of what they leave, and the exact rest.
    pub fn progressive(&self) -> ArchiveBuilder {
        self.builder(|name, shape, values| match shape {
            [rows, cols] => levels(*rows, *cols, values, name.contains("down_proj")),
            _ => MatrixEntry::from_node(node(shape, values)),
        })
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn times(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.get(&format!("{name}.weight"));
        let mut y: Vec<f64> =
            w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect();
        if let Some((_, bias)) = self.tensors.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += f64::from(*b));
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factors = self.get(name).iter();
        x.iter().zip(factors).map(|(x, g)| x / (mean + EPS).sqrt() * f64::from(*g)).collect()
    }

    /// What of the experts of a layer come highest in the softmax of the router's scores, by that.
    fn mixture(&self, layer: usize, input: &[f64]) -> Vec<f64> {
        let (block, [gate, up, down]) = self.kind.mixture().expect("a mixture");
        let prefix = format!("model.layers.{layer}.{block}");
        let scores = self.times(&format!("{prefix}.gate"), input);
        let whole: f64 = scores.iter().map(|score| score.exp()).sum();
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(PER_TOKEN);
        let chosen: f64 = order.iter().map(|expert| scores[*expert].exp() / whole).sum();
        // Mixtral's add up to 1; Qwen3's only where its configuration says so.
        let divisor = if self.kind == Kind::Mixtral { chosen } else { 1.0 };
        let mut sum = vec![0.0; HIDDEN];
        for expert in order {
            let name = |matrix: &str| format!("{prefix}.experts.{expert}.{matrix}");
            let (g, u) = (self.times(&name(gate), input), self.times(&name(up), input));
            let wide: Vec<_> = g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let factor = scores[expert].exp() / whole / divisor;
            sum.iter_mut().zip(self.times(&name(down), &wide)).for_each(|(sum, y)| *sum += factor * y);
        }
        sum
    }

    /// Logits after each of `ids`, in f64; `seen` is shown what each matrix reads.
    pub fn forward(&self, ids: &[u32], seen: &mut dyn FnMut(&str, &[f64])) -> Vec<Vec<f64>> {
        let embedding = self.get("model.embed_tokens.weight");
        let row = |id: &u32| {
            embedding[*id as usize * HIDDEN..][..HIDDEN].iter().map(|v| f64::from(*v)).collect::<Vec<f64>>()
        };
        let mut xs: Vec<_> = ids.iter().map(row).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in xs.iter_mut().enumerate() {
                let input = self.norm(&name("input_layernorm.weight"), x);
                for part in ["q_proj", "k_proj", "v_proj"] {
                    seen(&name(&format!("self_attn.{part}.weight")), &input);
                }
                let heads = |part: &str, norm: &str| -> Vec<Vec<f64>> {
                    let y = self.times(&name(&format!("self_attn.{part}")), &input);
                    y.chunks(HEAD_DIM)
                        .map(|head| match self.kind {
                            kind if kind.qk_norm() && part != "v_proj" => {
                                self.norm(&name(&format!("self_attn.{norm}.weight")), head)
                            }
                            _ => head.to_vec(),
                        })
                        .collect()
                };
                let turn =
                    |heads: Vec<Vec<f64>>| heads.iter().map(|h| rotate(h, position)).collect::<Vec<_>>();
                let queries = turn(heads("q_proj", "q_norm"));
                keys.push(turn(heads("k_proj", "k_norm")));
                values.push(heads("v_proj", ""));
                let mut attended = Vec::new();
                for (h, q) in queries.iter().enumerate() {
                    let kv = h / (HEADS / KV_HEADS);
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|k| {
                            k[kv].iter().zip(q).map(|(k, q)| k * q).sum::<f64>() / (HEAD_DIM as f64).sqrt()
                        })
                        .collect();
                    let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                    for i in 0..HEAD_DIM {
                        let terms = scores.iter().zip(&values);
                        attended.push(terms.map(|(s, v)| s.exp() / sum * v[kv][i]).sum::<f64>());
                    }
                }
                seen(&name("self_attn.o_proj.weight"), &attended);
                let y = self.times(&name("self_attn.o_proj"), &attended);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                let input = self.norm(&name("post_attention_layernorm.weight"), x);
                if self.kind.mixture().is_some() {
                    let y = self.mixture(layer, &input);
                    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                    continue;
                }
                seen(&name("mlp.gate_proj.weight"), &input);
                seen(&name("mlp.up_proj.weight"), &input);
                let gate = self.times(&name("mlp.gate_proj"), &input);
                let up = self.times(&name("mlp.up_proj"), &input);
                let wide: Vec<_> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                seen(&name("mlp.down_proj.weight"), &wide);
                let y = self.times(&name("mlp.down_proj"), &wide);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
        }
        let head = if self.tied { "model.embed_tokens" } else { "lm_head" };
        let last = xs.iter().map(|x| {
            let input = self.norm("model.norm.weight", x);
            seen(&format!("{head}.weight"), &input);
            self.times(head, &input)
        });
        last.collect()
    }
}

/// Element i turns with i + HEAD_DIM / 2.
fn rotate(x: &[f64], position: usize) -> Vec<f64> {
    let half = HEAD_DIM / 2;
    let mut y = x.to_vec();
    for i in 0..half {
        let angle = position as f64 * THETA.powf(-(2.0 * i as f64) / HEAD_DIM as f64);
        y[i] = x[i] * angle.cos() - x[i + half] * angle.sin();
        y[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin();
    }
    y
}

fn node(shape: &[usize], values: &[f32]) -> NodeData {
    let (rows, cols) = match shape {
        [rows, cols] => (*rows, *cols),
        _ => (1, values.len()),
    };
    dense::pack_values(DType::F32, rows as u64, cols as u64, values).expect("f32 values")
}

/// Blocks of 16 rows at three levels, with transforms on one or both sides.
fn levels(rows: usize, cols: usize, values: &[f32], both: bool) -> MatrixEntry {
    let input = cmf_format::transform::Transform::sign_hadamard(cols, 8, 5).expect("a block of 8");
    let output = cmf_format::transform::Transform::sign_hadamard(rows, 8, 6).expect("a block of 8");
    // W = T_out S T_in with orthogonal T: S = T_out^T W T_in^T.
    let mut sum = values.to_vec();
    for row in sum.chunks_mut(cols) {
        input.apply(cmf_format::transform::Side::Input, row).expect("a row");
    }
    if both {
        for col in 0..cols {
            let mut column: Vec<_> = (0..rows).map(|r| sum[r * cols + col]).collect();
            output.apply(cmf_format::transform::Side::Input, &mut column).expect("a column");
            (0..rows).for_each(|r| sum[r * cols + col] = column[r]);
        }
    }
    let mut units = Vec::new();
    for level in 0..3u16 {
        for (block, rest) in sum.chunks_mut(16 * cols).enumerate() {
            let height = rest.len() / cols;
            let node = if level < 2 { integers(height, cols, rest) } else { node(&[height, cols], rest) };
            let mut decoded = vec![0.0; rest.len()];
            node.view().and_then(|view| view.decode_rows(0..height, &mut decoded)).expect("decodes");
            rest.iter_mut().zip(&decoded).for_each(|(rest, v)| *rest -= v);
            let row_start = block as u64 * 16;
            let term = TermEntry { row_start, col_start: 0, optional: false, node: node.into() };
            units.push(UnitEntry { level, row_start, rows: height as u64, terms: vec![term] });
        }
    }
    let transform = |seed| TransformEntry::SignHadamard { block: 8, seed };
    MatrixEntry {
        rows: rows as u64,
        cols: cols as u64,
        input_transforms: vec![transform(5)],
        output_transforms: if both { vec![transform(6)] } else { Vec::new() },
        units,
    }
}

/// 3-bit integers with one scale.
fn integers(rows: usize, cols: usize, values: &[f32]) -> NodeData {
    let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 4.0;
    let scale = scale.max(1e-30);
    let codes: Vec<u8> = values.iter().map(|v| ((v / scale).round() + 4.0).clamp(0.0, 7.0) as u8).collect();
    let descriptor = grouped::Descriptor {
        bits: 3,
        code_map: grouped::CodeMap::Integer { offset: -4 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 0,
        group_cols: 0,
    };
    let scale = dense::pack_values(DType::F32, 1, 1, &[scale]).expect("a scale");
    let children = grouped::Children { scale: Some(scale), zero: None, table: None };
    grouped::pack(&descriptor, rows as u64, cols as u64, &codes, children).expect("codes")
}

/// Words `w0` to `w39`.
pub fn tokenizer() -> serde_json::Value {
    let words: serde_json::Map<_, _> = (0..VOCAB).map(|i| (format!("w{i}"), i.into())).collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    })
}

/// A text of `n` tokens.
pub fn text(n: usize) -> String {
    (0..n).map(|i| format!("w{} ", (i * i * 7 + i * 3 + i / 5) % VOCAB)).collect()
}

pub fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * 3 + i / 5) % VOCAB) as u32).collect()
}

/// A directory with `model.cmf` in it.
pub fn written(builder: &ArchiveBuilder) -> std::io::Result<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("model.cmf");
    std::fs::write(&path, builder.to_vec().map_err(std::io::Error::other)?)?;
    Ok((directory, path))
}

/// The largest difference, relative to the largest value.
pub fn difference(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs())) / most
}
