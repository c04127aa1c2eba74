"""What packed dot products of int8 activations would give, beside f32: `pip install wgpu numpy`, then
`python packed_dot.py [TILE]`, where TILE activations are multiplied at a time with a batch of 32 (8).

Both kernels are made alike: a thread has eight rows, codes of 4 or 8 bits have a scale for each 32 columns.
For the packed ones activations are int8 with a scale for each 32, laid out beforehand, which is not counted.
Milliseconds of the processor, best of seven rounds; rows of each result are compared with numpy.
"""

import sys
import time

import numpy as np
import wgpu

SIDE, ROWS, WIDTH = 4096, 8, 16
STEPS = SIDE // 32
XYZW = "xyzw"

adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
device = adapter.request_device_sync()
random = np.random.default_rng(1)


def kernel(bits, tile, packed):
    """WGSL: codes, scales, activations, their scales and sums by step, results."""
    single = tile == 1
    space = "uniform" if single else "storage, read"
    x_type, x_length = ("vec4<u32>", SIDE // 16) if packed else ("vec4<f32>", SIDE // 4)
    lines = [
        "@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;",
        "@group(0) @binding(1) var<storage, read> scales: array<f32>;",
        f"@group(0) @binding(2) var<{space}> x: array<{x_type}{f', {x_length}' if single else ''}>;",
        "@group(0) @binding(4) var<storage, read_write> y: array<f32>;",
        f"@compute @workgroup_size({WIDTH}) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{",
        f"let row0 = id.x * {ROWS}u; let tile = id.y;",
    ]
    if packed:
        length = f", {STEPS // 2}" if single else ""
        lines.insert(3, f"@group(0) @binding(3) var<{space}> x_scales: array<vec4<f32>{length}>;")
    add = lines.append
    sums = tile if packed or single else tile // 4
    for r in range(ROWS):
        for m in range(sums):
            add(f"var sum{r}_{m} = {'0.0' if packed or single else 'vec4<f32>(0.0)'};")
    add(f"for (var step = 0u; step < {STEPS}u; step++) {{")
    for r in range(ROWS):
        add(f"let scale{r} = scales[(row0 + {r}u) * {STEPS}u + step];")
        for i in range(bits // 4):
            add(f"let codes{r}_{i} = codes[((row0 + {r}u) * {STEPS}u + step) * {bits // 4}u + {i}u];")
        for m in range(tile if packed else single):
            add(f"var part{r}_{m} = {'0' if packed else '0.0'};")
    (packed_step if packed else f32_step)(add, bits, tile)
    add("}")
    for r in range(ROWS):
        for m in range(tile):
            value = f"sum{r}_{m}" if packed or single else f"sum{r}_{m // 4}.{XYZW[m % 4]}"
            add(f"y[(tile * {tile}u + {m}u) * {SIDE}u + row0 + {r}u] = {value};")
    add("}")
    return "\n".join(lines)


def packed_step(add, bits, tile):
    """Words of four codes with words of four activations: those of 4 bits are columns 0, 2, 4, 6, then 1, 3, 5, 7."""
    single = tile == 1
    offset = 8.0 if bits == 4 else 0.0
    if single:
        add("let x0 = x[step * 2u]; let x1 = x[step * 2u + 1u]; let both = x_scales[step >> 1u];")
        add("let s = select(both.xy, both.zw, (step & 1u) == 1u);")
    for w in range(8):
        for r in range(ROWS):
            if bits == 8:
                add(f"let c{r}_{w} = codes{r}_{w // 4}.{XYZW[w % 4]} ^ 0x80808080u;")
            else:
                add(f"let c{r}_{w} = (codes{r}_0.{XYZW[w // 2]} >> {w % 2 * 4}u) & 0x0f0f0f0fu;")
            if single:
                add(f"part{r}_0 += dot4I8Packed(c{r}_{w}, x{w // 4}.{XYZW[w % 4]});")
        for q in range(tile // 4):
            add(f"let x{w}_{q} = x[(tile * {STEPS}u + step) * {2 * tile}u + {w * tile // 4 + q}u];")
            for r in range(ROWS):
                for c in range(4):
                    add(f"part{r}_{q * 4 + c} += dot4I8Packed(c{r}_{w}, x{w}_{q}.{XYZW[c]});")
    for q in range(tile // 4):
        for name, at in [("s", q), ("t", tile // 4 + q)]:
            add(f"let {name}{q} = x_scales[(tile * {STEPS}u + step) * {tile // 2}u + {at}u];")
    for r in range(ROWS):
        for m in range(tile):
            scale, total = ("s.x", "s.y") if single else (f"s{m // 4}.{XYZW[m % 4]}", f"t{m // 4}.{XYZW[m % 4]}")
            add(f"sum{r}_{m} += (f32(part{r}_{m}) - {offset} * {total}) * ({scale} * scale{r});")


def f32_step(add, bits, tile):
    """Four columns of eight rows at a time."""
    single = tile == 1
    for q in range(8):
        for r in range(ROWS):
            at = [(q * 4 + i) * bits for i in range(4)]
            codes = (f"(codes{r}_{b // 128}.{XYZW[b // 32 % 4]} >> {b % 32}u) & {(1 << bits) - 1}u" for b in at)
            add(f"let w{r}_{q} = vec4<f32>(vec4<i32>(vec4<u32>({', '.join(codes)})) - vec4<i32>({1 << (bits - 1)}))"
                f"{'' if single else f' * scale{r}'};")
        if single:
            add(f"let x{q} = x[step * 8u + {q}u];")
            for r in range(ROWS):
                add(f"part{r}_0 += dot(w{r}_{q}, x{q});")
        for i in range(4):
            for h in range(tile // 4):
                add(f"let x{q}_{i}_{h} = x[(tile * {SIDE}u + step * 32u + {q * 4 + i}u) * {tile // 4}u + {h}u];")
                for r in range(ROWS):
                    add(f"sum{r}_{h} += w{r}_{q}.{XYZW[i]} * x{q}_{i}_{h};")
    if single:
        for r in range(ROWS):
            add(f"sum{r}_0 += part{r}_0 * scale{r};")


def layouts(bits, batch, tile, x, packed):
    """Activations as the kernel reads them, and the numbers that they stand for."""
    if not packed:
        return [x.reshape(batch // tile, tile, SIDE).transpose(0, 2, 1).astype(np.float32)], x
    blocks = x.reshape(batch, STEPS, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / 127
    ints = np.rint(blocks / scale).astype(np.int8)
    sums = ints.sum(axis=2, dtype=np.int64).astype(np.float32)
    order = np.arange(32).reshape(4, 4, 2).transpose(0, 2, 1).ravel() if bits == 4 else np.arange(32)
    words = np.ascontiguousarray(ints[:, :, order]).view(np.uint32)
    tiled = words.reshape(batch // tile, tile, STEPS, 8).transpose(0, 2, 3, 1)
    beside = np.stack([scale[:, :, 0], sums], axis=2).reshape(batch // tile, tile, STEPS, 2).transpose(0, 2, 3, 1)
    return [tiled, beside.astype(np.float32)], (ints * scale).reshape(batch, SIDE)


def best_ms(bits, batch, tile, packed):
    """Milliseconds of a product."""
    words = random.integers(0, 1 << 32, size=SIDE * SIDE * bits // 32, dtype=np.uint32)
    scales = random.random(SIDE * STEPS, dtype=np.float32)
    laid_out, x = layouts(bits, batch, tile, random.uniform(-1, 1, (batch, SIDE)), packed)
    x_usage = wgpu.BufferUsage.UNIFORM if tile == 1 else wgpu.BufferUsage.STORAGE

    def buffer(data, usage=wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC):
        return device.create_buffer_with_data(data=np.ascontiguousarray(data), usage=usage)

    y = buffer(np.zeros(batch * SIDE, np.float32))
    buffers = {0: buffer(words), 1: buffer(scales), 4: y}
    buffers.update((2 + i, buffer(part, x_usage)) for i, part in enumerate(laid_out))
    module = device.create_shader_module(code=kernel(bits, tile, packed))
    pipeline = device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})
    entries = [{"binding": i, "resource": {"buffer": b, "offset": 0, "size": b.size}} for i, b in buffers.items()]
    group = device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
    times = []
    for _ in range(8):
        start = time.process_time()
        encoder = device.create_command_encoder()
        run = encoder.begin_compute_pass()
        run.set_pipeline(pipeline)
        run.set_bind_group(0, group)
        run.dispatch_workgroups(SIDE // ROWS // WIDTH, batch // tile, 1)
        run.end()
        device.queue.submit([encoder.finish()])
        device.queue.read_buffer(y, 0, 16)
        times.append((time.process_time() - start) * 1e3)
    rows = words.view(np.uint8).reshape(SIDE, -1)[:4]
    codes = np.stack([rows & 15, rows >> 4], axis=2).reshape(4, SIDE) if bits == 4 else rows
    w = (codes.astype(np.float64) - (1 << (bits - 1))) * np.repeat(scales.reshape(SIDE, STEPS)[:4], 32, axis=1)
    found = np.frombuffer(device.queue.read_buffer(y), np.float32).reshape(batch, SIDE)[:, :4]
    assert np.abs(found - x @ w.T).max() <= 1e-5 * (np.abs(x) @ np.abs(w.T)).max(), (bits, batch, packed)
    return min(times[1:])


def main():
    tile = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    print(adapter.info["device"])
    for bits in (4, 8):
        for batch in (1, 32):
            plain, packed = (best_ms(bits, batch, tile if batch > 1 else 1, p) for p in (False, True))
            print(f"{bits} bits, batch {batch}: f32 {plain:.2f} ms, packed {packed:.2f} ms, {plain / packed:.2f} times as fast")


main()
