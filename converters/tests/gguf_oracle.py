#!/usr/bin/env python3
"""Compares the GGUF import with the `gguf` Python package, bit by bit.

    gguf_oracle.py fixtures      writes fixtures/gguf/blocks.{gguf,f32}, which the Rust tests read
    gguf_oracle.py random [N]    compares N random blocks of every type (default 4096)
    gguf_oracle.py model FILE    compares every tensor of a real model

Needs the PyPI packages `gguf` and `numpy`; the last two run the example `gguf_values`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

HERE = Path(__file__).resolve().parent
ROWS = 2

# Byte offsets of the f16 fields, which must be finite; all other bytes may be anything.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.Q1_0: [0],
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ1_S: [0],
    T.IQ1_M: [], T.MXFP4: [], T.NVFP4: [],
}
NUMBERS = {
    T.F32: np.float32, T.F16: np.float16, T.F64: np.float64,
    T.I8: np.int8, T.I16: np.int16, T.I32: np.int32, T.I64: np.int64,
}


def finite_halves(rng, shape):
    """f16 of every size and sign, with zeros and subnormals."""
    bits = rng.integers(0, 0x7C00, shape, dtype=np.uint16)
    small = rng.random(shape) < 0.2
    bits = np.where(small, bits % 0x400, bits).astype(np.uint16)
    bits[rng.random(shape) < 0.05] = 0
    return bits | (rng.integers(0, 2, shape, dtype=np.uint16) << 15)


def random_blocks(rng, kind, blocks):
    """Bytes of shape [ROWS, blocks * block bytes]."""
    size = GGML_QUANT_SIZES[kind][1]
    data = rng.integers(0, 256, (ROWS, blocks, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = finite_halves(rng, (ROWS, blocks, 1))
        data[..., at : at + 2] = halves.view(np.uint8).reshape(ROWS, blocks, 2)
    if kind == T.IQ1_M:
        # The f16 is spread over the high nibbles of four u16 at 48.
        halves = finite_halves(rng, (ROWS, blocks))
        for i in range(4):
            nibble = (halves >> (4 * i) & 15).astype(np.uint8)
            data[..., 49 + 2 * i] = data[..., 49 + 2 * i] & 15 | nibble << 4
    return data.reshape(ROWS, blocks * size)


def values(kind, data):
    """What the stored `data` of a tensor mean, as flat f32."""
    if kind in NUMBERS:
        return data.astype(np.float32).ravel()
    if kind == T.Q1_0:  # which the package does not decode
        blocks = np.ascontiguousarray(data).reshape(-1, 18)
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
        return np.where(bits == 1, d, -d).ravel()
    return dequantize(data, kind).astype(np.float32, copy=False).ravel()


def write_random(path, blocks_of, seed):
    """Writes a model with one tensor of every type; gives its values."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "oracle")
    writer.add_uint8("test.u8", 250)
    writer.add_int8("test.i8", -5)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -300)
    writer.add_int32("test.i32", -70000)
    writer.add_float32("test.f32", 1e-5)
    writer.add_float64("test.f64", 0.1)
    writer.add_uint64("test.u64", 2**63)
    writer.add_int64("test.i64", -(2**40))
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "grün")
    writer.add_array("test.strings", ["a", "", "ß"])
    writer.add_array("test.integers", [1, -2, 3])
    expected = []
    for kind, dtype in NUMBERS.items():
        if np.issubdtype(dtype, np.integer):
            info = np.iinfo(dtype)
            data = rng.integers(info.min, info.max, (ROWS, 40), dtype=dtype, endpoint=True)
        else:
            data = (rng.standard_normal((ROWS, 40)) * 10.0 ** rng.integers(-7, 4, (ROWS, 40))).astype(dtype)
        writer.add_tensor(kind.name.lower(), data)
        expected.append(values(kind, data))
    data = rng.standard_normal((ROWS, 40)).astype(np.float32).view(np.uint16)[:, 1::2].copy().view(np.uint8)
    writer.add_tensor("bf16", data, raw_dtype=T.BF16)
    expected.append(values(T.BF16, data))
    for kind in HALVES:
        data = random_blocks(rng, kind, blocks_of(GGML_QUANT_SIZES[kind][0]))
        writer.add_tensor(kind.name.lower(), data, raw_dtype=kind)
        expected.append(values(kind, data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def imported(path, *flags):
    command = ["cargo", "run", "--release", "--quiet", "-p", "cmf-converters", "--example", "gguf_values", "--"]
    run = subprocess.run([*command, *flags, str(path)], stdout=subprocess.PIPE, check=True, cwd=HERE.parent)
    return np.frombuffer(run.stdout, dtype="<f4")


def compare(path, names, expected):
    """Prints what differs, in blocks decoded and in nodes built from them; gives their number."""
    wrong = 0
    for way, flags in (("blocks", []), ("nodes", ["--nodes"])):
        found, at = imported(path, *flags), 0
        for name, values in zip(names, expected, strict=True):
            part = found[at : at + values.size]
            at += values.size
            if part.size != values.size:
                raise SystemExit(f"{name}: expected {values.size} values, found {part.size}")
            differ = np.flatnonzero(part.view(np.uint32) != values.view(np.uint32))
            if differ.size:
                wrong += 1
                print(f"{way} of {name}: {differ.size} of {values.size} values differ, first at {differ[0]}")
        if at != found.size:
            raise SystemExit(f"expected {at} values, found {found.size}")
        print(f"{way}: {len(names)} tensors, {at} values compared")
    print("all agree to the bit" if wrong == 0 else f"{wrong} tensors differ")
    return min(wrong, 1)


def main(mode, *args):
    if mode == "fixtures":
        folder = HERE / "fixtures" / "gguf"
        folder.mkdir(parents=True, exist_ok=True)
        expected = write_random(folder / "blocks.gguf", lambda elems: 8 if elems < 256 else 1, 251)
        np.concatenate(expected).astype("<f4").tofile(folder / "blocks.f32")
        return 0
    if mode == "random":
        count = int(args[0]) if args else 4096
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random.gguf"
            expected = write_random(path, lambda elems: count // ROWS, None)
            return compare(path, [t.name for t in GGUFReader(path).tensors], expected)
    if mode == "model":
        tensors = GGUFReader(args[0]).tensors
        return compare(Path(args[0]).resolve(), [t.name for t in tensors], [values(t.tensor_type, t.data) for t in tensors])
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["help"])))
