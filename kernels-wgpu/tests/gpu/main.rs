//! Every kernel against the reference decode, on whatever adapter there is. Without one the tests say
//! SKIPPED, or fail if `CMF_REQUIRE_GPU=1`.

mod common;
mod dense;
mod device;
mod factors;
mod grouped;
#[cfg(target_os = "linux")]
#[path = "../layer/mod.rs"]
mod layer;
mod limits;
mod matrices;
mod sparse;
mod transforms;
mod trellis;
mod vectors;
