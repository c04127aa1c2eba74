"""A mixture of experts made of a dense Llama checkpoint, for trying mixtures on a real model.

    python3 tests/upcycle.py smollm2-135m-f16 mixture --experts 16

Each expert is its layer's MLP with its inner units in an order of its own, and routers are random (after
sparse upcycling, Komatsuzaki et al., arXiv:2212.05055, section 3). Weights of the experts that a router
chooses add up to 1, so the mixture says what the dense model says, whichever are chosen: a wrong expert
shows. Reads and writes one `model.safetensors` of f16; needs numpy."""

import argparse
import json
import math
import pathlib
import re
import shutil
import struct

import numpy

MATRICES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=pathlib.Path)
    parser.add_argument("mixture", type=pathlib.Path)
    parser.add_argument("--experts", type=int, default=16)
    args = parser.parse_args()

    config = json.loads((args.dense / "config.json").read_text())
    if config["model_type"] != "llama":
        parser.error(f"{args.dense}: expected a llama, found {config['model_type']}")
    config.update(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        num_local_experts=args.experts,
        num_experts_per_tok=2,
        sliding_window=None,
    )

    stored = numpy.memmap(args.dense / "model.safetensors", dtype=numpy.uint8, mode="r")
    (length,) = struct.unpack("<Q", stored[:8].tobytes())
    dense = json.loads(stored[8 : 8 + length].tobytes())
    dense.pop("__metadata__", None)
    if other := {entry["dtype"] for entry in dense.values()} - {"F16"}:
        parser.error(f"{args.dense}: expected tensors of F16, found {other}")

    inner = config["intermediate_size"]
    tensors = []  # name, dtype, shape, and how to get the bytes
    for name, entry in dense.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        values = stored[start:end].view(numpy.float16).reshape(entry["shape"])
        if found := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(\w+)\.weight", name):
            axis = 1 if found[2] == "down_proj" else 0
            for expert in range(args.experts):
                order = numpy.random.default_rng([int(found[1]), expert]).permutation(inner)
                name = f"{block(found[1])}.experts.{expert}.{MATRICES[found[2]]}.weight"
                tensors.append((name, values.shape, lambda v=values, o=order, a=axis: numpy.take(v, o, a)))
        else:
            tensors.append((name, values.shape, lambda v=values: v))
    random = numpy.random.default_rng(1)
    for layer in range(config["num_hidden_layers"]):
        shape = (args.experts, config["hidden_size"])
        router = random.standard_normal(shape, dtype=numpy.float32).astype(numpy.float16)
        tensors.append((f"{block(layer)}.gate.weight", shape, lambda v=router: v))

    header, offset = {}, 0
    for name, shape, _ in tensors:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)

    args.mixture.mkdir(parents=True, exist_ok=True)
    for path in args.dense.iterdir():
        if path.suffix == ".json" and not path.name.endswith(".index.json"):
            shutil.copy(path, args.mixture)
    (args.mixture / "config.json").write_text(json.dumps(config, indent=2))
    with open(args.mixture / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, _, make in tensors:
            file.write(numpy.ascontiguousarray(make()))
    print(f"{args.mixture}: {args.experts} experts in each of {config['num_hidden_layers']} layers, {offset} bytes")


def block(layer):
    return f"model.layers.{layer}.block_sparse_moe"


if __name__ == "__main__":
    main()
