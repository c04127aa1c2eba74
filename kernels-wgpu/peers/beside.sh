#!/bin/sh
# Our products beside those of others, on the adapter that each prefers, and how many times as long these take:
#
#   beside.sh [--cpu] ROWS COLS PEER...
#
# from the root of the repository. A PEER is a command that takes [--cpu] ROWS COLS and prints a table as
# the example `speed` does, such as
#
#   "target/ggml package/bins/linux-x64-vulkan/libggml-vulkan.so"          built as ggml.c says
#   "cargo run -q --release --manifest-path integrations/burn/Cargo.toml --features autotune --example matmul --"
#   "cargo run -q --release --manifest-path kernels-wgpu/peers/web-rwkv/Cargo.toml --"
#
# Each form is compared with ours of as many bits.
set -eu
cpu=
[ "$1" = --cpu ] && cpu=--cpu && shift
rows=$1 cols=$2
shift 2
cargo build -q --release -p cmf-kernels-wgpu --example speed
{
  target/release/examples/speed $cpu "$rows" "$cols"
  for peer in "$@"; do
    # A peer that fails is left out.
    GGML_VK_VISIBLE_DEVICES=0 $peer $cpu "$rows" "$cols" || echo "failed: $peer" >&2
  done
} | awk '
  # Names take 32 places; four numbers follow, and a share after ours.
  { name = substr($0, 1, 32); sub(/ +$/, "", name); split(substr($0, 33), at, " ") }
  /^form/ { if (!header++) print $0 "  times ours"; next }
  at[1] at[2] at[3] at[4] !~ /^[0-9.]+$/ || at[4] == "" { print; next }
  at[5] != "" { for (i = 1; i <= 3; i++) ms[name, i] = at[i + 1]; print; next }
  {
    ours = name ~ /f32/ ? "dense f32" : name ~ /f16|fp16/ ? "dense f16" : name ~ /8/ ? "grouped 8 bits" : "grouped 4 bits"
    printf "%s%10s", $0, ""
    for (i = 1; i <= 3; i++) printf "%s%.1f", i == 1 ? "" : ", ", at[i + 1] / ms[ours, i]
    print ""
  }'
