#!/usr/bin/env python3
"""Computes with numpy what `cmf diff` reports, and compares.

usage: diff_oracle.py CMF MODEL RECIPE...

MODEL is a safetensors file or a Hugging Face directory with one. For each recipe: converts MODEL,
exports the archive as f32 safetensors, reads both files by the few lines below and nothing of this
project, and demands that `cmf diff` between model and archive states the same numbers for every
tensor. `lossless` must give back the very bytes. Exit status 0 when all agree.
"""

import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np

# Largest relative difference between the sums of both sides: both are f64, in another order.
TOLERANCE = 1e-9


def load(path):
    """Tensors of a safetensors file as (dtype name, shape, raw bytes)."""
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    data = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    cut = {name: entry["data_offsets"] for name, entry in header.items()}
    return {
        name: (entry["dtype"], entry["shape"], data[start + cut[name][0] : start + cut[name][1]])
        for name, entry in header.items()
    }


def values(dtype, raw):
    """Elements as f64."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
    kinds |= {"U8": "u1", "BOOL": "?"}
    return np.frombuffer(raw, kinds[dtype]).astype(np.float64)


def expected(a, b):
    """What the report must state of two arrays."""
    signal = math.fsum(a * a)
    noise = math.fsum((a - b) ** 2)
    return {
        "snr_db": 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None,
        "relative_error": math.sqrt(noise / signal) if noise > 0 and signal > 0 else 0.0,
        "max_abs_error": float(np.max(np.abs(a - b), initial=0.0)),
        "identical": noise == 0,
    }


def agree(found, wanted):
    if isinstance(wanted, float) and isinstance(found, (int, float)):
        return math.isclose(found, wanted, rel_tol=TOLERANCE, abs_tol=0.0)
    return found == wanted


def check(cmf, model, recipe, folder):
    """Messages about what does not agree."""
    archive, exported = str(folder / "a.cmf"), str(folder / "b.safetensors")
    run = lambda *args: subprocess.run([cmf, *args], check=True, stdout=subprocess.DEVNULL)
    run("convert", model, "-o", archive, "--recipe", recipe, "--force", "--quiet")
    run("export", archive, "-o", exported, "--dtype", "f32", "--force", "--quiet")
    report = subprocess.run([cmf, "diff", model, archive, "--json", "--quiet"], stdout=subprocess.PIPE)
    reported = {t["name"]: t for t in json.loads(report.stdout)["tensors"]}
    source, export = load(model), load(exported)
    problems = []
    if not (source.keys() == export.keys() == reported.keys()):
        problems.append("other tensors")
    for name in sorted(source.keys() & export.keys() & reported.keys()):
        a, b = (values(*file[name][::2]) for file in (source, export))
        for key, wanted in expected(a, b).items():
            found = reported[name][key]
            if not agree(found, wanted):
                problems.append(f"{name}: {key}: expected {wanted}, found {found}")
    if recipe == "lossless":
        run("export", archive, "-o", exported, "--force", "--quiet")
        if load(exported) != source:
            problems.append("the export does not have the bytes of the source")
    return problems


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    cmf, model, *recipes = sys.argv[1:]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes:
            problems = check(cmf, model, recipe, pathlib.Path(folder))
            print(f"cmf diff against numpy, {recipe}: {'; '.join(problems[:5]) or 'agrees'}", flush=True)
            failed += bool(problems)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
