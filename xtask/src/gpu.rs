//! A WGPU adapter for the tests: where there is none, Mesa's software driver.

use std::path::Path;

use anyhow::Result;

use crate::packages;

/// Where Vulkan loaders look for drivers.
const DRIVERS: [&str; 2] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// Installs the software driver where no driver is there and packages can be installed; whether the
/// tests may require an adapter.
pub(crate) fn provide(root: &Path) -> Result<bool> {
    if !has_driver() {
        packages::install(root, &["mesa-vulkan-drivers", "libvulkan1"])?;
    }
    let found = has_driver();
    if !found {
        println!("no Vulkan driver, and none could be installed: tests that need an adapter are skipped");
    }
    Ok(found)
}

fn has_driver() -> bool {
    DRIVERS.iter().any(|directory| std::fs::read_dir(directory).is_ok_and(|mut files| files.next().is_some()))
}
