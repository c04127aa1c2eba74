//! The benchmarks for `cargo bench`.

fn main() -> std::process::ExitCode {
    cmf_benches::run(std::env::args_os())
}
