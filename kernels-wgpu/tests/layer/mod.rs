//! A GPU's memory that a test makes up: a layer between the loader of Vulkan and its driver.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A layer that is compiled, and the figures that it gives.
pub(crate) struct Layer {
    folder: PathBuf,
}

impl Layer {
    /// Compiles it into `folder`, from beside this file, in `tests` of this crate.
    pub(crate) fn new(tests: &Path, folder: &Path) -> Result<Self, Box<dyn Error>> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let library = folder.join("libmemory_budget.so");
        let mut compile = Command::new(rustc);
        compile
            .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
            .arg(&library);
        let output = compile.arg(tests.join("layer/memory_budget.rs")).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let manifest = r#"{
  "file_format_version": "1.2.0",
  "layer": {
    "name": "VK_LAYER_CMF_memory_budget",
    "type": "GLOBAL",
    "library_path": "./libmemory_budget.so",
    "api_version": "1.3.0",
    "implementation_version": "1",
    "description": "figures of memory that a test makes up"
  }
}"#;
        std::fs::write(folder.join("memory_budget.json"), manifest)?;
        let layer = Self { folder: folder.to_owned() };
        layer.set(0, 0)?;
        Ok(layer)
    }

    /// Says how many bytes the process may have in all, and how many it has.
    pub(crate) fn set(&self, budget_bytes: u64, used_bytes: u64) -> Result<(), Box<dyn Error>> {
        self.write(&format!("{budget_bytes} {used_bytes}"))
    }

    /// Has the driver say nothing, to processes that begin.
    #[allow(dead_code, reason = "not every test that has this file has use for it")]
    pub(crate) fn be_silent(&self) -> Result<(), Box<dyn Error>> {
        self.write("")
    }

    fn write(&self, text: &str) -> Result<(), Box<dyn Error>> {
        // In one step: a reader sees all of one time.
        let next = self.folder.join("next");
        std::fs::write(&next, text)?;
        Ok(std::fs::rename(next, self.folder.join("figures"))?)
    }

    /// Has `command` use the layer, for a device with memory of its own (`true`) or of its driver's type.
    pub(crate) fn use_in<'c>(&self, command: &'c mut Command, own_memory: bool) -> &'c mut Command {
        if own_memory {
            // VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
            command.env("CMF_LAYER_DEVICE_TYPE", "2");
        }
        command
            .env("VK_LAYER_PATH", &self.folder)
            .env("VK_INSTANCE_LAYERS", "VK_LAYER_CMF_memory_budget")
            .env("CMF_LAYER_MEMORY", self.folder.join("figures"))
    }
}
