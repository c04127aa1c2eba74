//! The `cmf` command.

/// Large aligned buffers come and go with every matrix. glibc before 2.38 does not find those again
/// that were freed, so that a conversion would grow with the number of its tensors.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cmf_cli::run(std::env::args_os())
}
