//! The built command in a directory of its own, and small models for it.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests, each of which uses a part")]

pub mod llama;

use cmf_format::DType;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// What a run of the command gave.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The JSON on standard output; checks its schema number.
    pub fn json(&self) -> Outcome<Value> {
        let value: Value = serde_json::from_str(&self.stdout).map_err(|e| format!("{e}: {self:?}"))?;
        assert_eq!(value["schema"], 1, "{self:?}");
        Ok(value)
    }

    /// Standard output of a run that must have ended with 0 and said nothing on standard error.
    pub fn good(self) -> Outcome<String> {
        match (self.code, self.stderr.is_empty()) {
            (Some(0), true) => Ok(self.stdout),
            _ => Err(format!("{self:?}").into()),
        }
    }
}

/// A temporary directory in which the command runs.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Outcome<Vec<u8>> {
        Ok(std::fs::read(self.path(name)).map_err(|e| format!("{name}: {e}"))?)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Outcome {
        Ok(std::fs::write(self.path(name), bytes)?)
    }

    /// Names of all files and directories here, those of hidden ones too, ascending.
    pub fn names(&self) -> Outcome<Vec<String>> {
        names_in(self.0.path())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cmf"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    pub fn cmf(&self, args: &[&str]) -> Outcome<Run> {
        let output = self.command(args).output()?;
        Ok(Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// Standard output of a run that must be good.
    pub fn good(&self, args: &[&str]) -> Outcome<String> {
        self.cmf(args)?.good()
    }

    /// Standard error of a run that must end with 2 and print nothing else.
    pub fn refused(&self, args: &[&str]) -> Outcome<String> {
        let run = self.cmf(args)?;
        match (run.code, run.stdout.is_empty()) {
            (Some(2), true) => Ok(run.stderr),
            _ => Err(format!("{args:?}: {run:?}").into()),
        }
    }
}

pub fn names_in(folder: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Pseudo-random weights, heavy in the tails.
pub fn weights(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (uniform() + uniform() + uniform()) * 0.1 / (0.3 + uniform().abs())).collect()
}

/// Name, element type, shape and bytes of a tensor.
pub type Part = (&'static str, DType, Vec<usize>, Vec<u8>);

/// Matrices whose sizes fit no group, vectors, experts, integers, an empty tensor and a scalar.
pub fn parts() -> Outcome<Vec<Part>> {
    let floats = |dtype: DType, count, seed| dtype.encode(&weights(count, seed));
    Ok(vec![
        ("embed.weight", DType::BF16, vec![130, 96], floats(DType::BF16, 130 * 96, 1)?),
        ("empty", DType::F32, vec![0, 4], vec![]),
        ("experts.weight", DType::F16, vec![3, 48, 64], floats(DType::F16, 3 * 48 * 64, 2)?),
        ("head.weight", DType::F32, vec![75, 131], floats(DType::F32, 75 * 131, 3)?),
        ("ids", DType::I64, vec![5], (0..5i64).flat_map(|i| (i << 40).to_le_bytes()).collect()),
        ("mask", DType::Bool, vec![3], vec![1, 0, 1]),
        ("norm.weight", DType::F32, vec![96], floats(DType::F32, 96, 4)?),
        ("scalar", DType::F64, vec![], 1.000_000_000_000_1f64.to_le_bytes().to_vec()),
    ])
}

/// Files that travel with the model.
pub const FILES: [(&str, &str); 5] = [
    ("config.json", "{ \"hidden_size\": 96 }\n"),
    ("generation_config.json", "{}"),
    ("tokenizer.json", "{\"tokens\": [\"a\", \"b\", \"ä\"]}\r\n"),
    ("chat_template.jinja", "{{ messages }}"),
    ("LICENSE", "Do as you like.\n"),
];

pub fn write_safetensors(path: &Path, parts: &[Part]) -> Outcome {
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        let dtype: Dtype = serde_json::from_value(dtype.safetensors_name().into())?;
        Ok((*name, TensorView::new(dtype, shape.clone(), bytes)?))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(serialize_to_file(views.collect::<Outcome<Vec<_>>>()?, Some(metadata), path)?)
}

/// A Hugging Face directory called `model` in `place`.
pub fn write_model(place: &Place) -> Outcome {
    std::fs::create_dir(place.path("model"))?;
    for (name, text) in FILES {
        place.write(&format!("model/{name}"), text)?;
    }
    write_safetensors(&place.path("model/model.safetensors"), &parts()?)
}

/// The same tensors in two shards with an index, in `sharded`.
pub fn write_sharded_model(place: &Place) -> Outcome {
    std::fs::create_dir(place.path("sharded"))?;
    let parts = parts()?;
    let (first, second) = parts.split_at(parts.len() / 2);
    let mut map = serde_json::Map::new();
    for (number, half) in [(1, first), (2, second)] {
        let name = format!("model-0000{number}-of-00002.safetensors");
        write_safetensors(&place.path("sharded").join(&name), half)?;
        map.extend(half.iter().map(|part| (part.0.to_owned(), Value::from(name.clone()))));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    place.write("sharded/model.safetensors.index.json", index.to_string())
}

/// A GGUF file with an f32 tensor, a Q4_0 and a Q8_0, made field by field.
pub fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let tensors: [(&str, u32, [u64; 2], usize); 3] =
        [("plain", 0, [6, 2], 48), ("q4_0", 2, [64, 3], 2 * 18 * 3), ("q8_0", 8, [32, 4], 34 * 4)];
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &3u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    file.extend([&text("general.name")[..], &8u32.to_le_bytes(), &text("tiny")].concat());
    let mut data: Vec<u8> = Vec::new();
    for (name, kind, dims, bytes) in tensors {
        file.extend([&text(name)[..], &2u32.to_le_bytes()].concat());
        file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        file.extend([&kind.to_le_bytes()[..], &(data.len() as u64).to_le_bytes()].concat());
        // Small numbers, so that the f16 scales and f32 values in between are finite.
        data.extend((0..bytes).map(|i| (i * 7 % 60) as u8));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

/// Name, element type, shape and bytes of a tensor.
pub type Stored = (String, String, Vec<usize>, Vec<u8>);

/// Tensors of a safetensors file: name, element type, shape, bytes.
pub fn read_safetensors(bytes: &[u8]) -> Outcome<Vec<Stored>> {
    let file = safetensors::SafeTensors::deserialize(bytes)?;
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    Ok(tensors)
}

/// The tensor called `name` in a JSON report.
pub fn tensor<'v>(report: &'v Value, name: &str) -> Outcome<&'v Value> {
    let tensors = report["tensors"].as_array().ok_or("no tensors")?;
    Ok(tensors.iter().find(|t| t["name"] == name).ok_or_else(|| format!("no tensor {name}"))?)
}

/// Checks that an object has exactly these keys.
pub fn assert_keys(value: &Value, keys: &[&str]) -> Outcome {
    let object = value.as_object().ok_or_else(|| format!("no object: {value}"))?;
    let mut found: Vec<_> = object.keys().map(String::as_str).collect();
    let mut keys = keys.to_vec();
    found.sort_unstable();
    keys.sort_unstable();
    assert_eq!(found, keys);
    Ok(())
}

/// Compares with a stored text. `CMF_BLESS=1` stores it anew.
pub fn check(name: &str, found: &str) -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text").join(name);
    if std::env::var_os("CMF_BLESS").is_some() {
        std::fs::write(&path, found)?;
    }
    let stored = std::fs::read_to_string(&path).map_err(|e| format!("{name}: {e}"))?;
    assert_eq!(found, stored, "{name}: if this is meant, run the test with CMF_BLESS=1\n{found}");
    Ok(())
}
