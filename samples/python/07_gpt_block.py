"""A transformer block, GPT-style: jalapeno.ops, a kernel of our own, and a graph that is replayed for each token.

What you learn: how a block is put together from operations with out=, where a kernel of one's own fits in, what a cache
of keys and values is for, and how a graph makes a step of decoding one packet. The block is Llama's:
x += attention(rmsnorm(x)), x += mlp(rmsnorm(x)), with rotary positions and a SwiGLU.

    python3 samples/python/07_gpt_block.py --picture block.png
"""
import time

import jalapeno as jal
import numpy as np
from jalapeno import language as tl, ops

from tutorial import check, picture

WIDTH, HEADS, HIDDEN, TOKENS, CONTEXT = 256, 4, 704, 64, 128
HEAD = WIDTH // HEADS


# Our own kernel: turns queries and keys by their positions and appends keys and values to the cache, one pass over qkv.
# The position is an element in device memory, not a number of the launch: a graph that is replayed finds another there.
@jal.kernel
def rope_and_append(qkv, cosine, sine, position, q, keys, values):
    row = tl.program_id(0)
    at = tl.item(tl.load(position, 0, 1)) + row
    c, s = tl.load(cosine, (at, 0), (1, HEAD // 2)), tl.load(sine, (at, 0), (1, HEAD // 2))
    tl.store(q, (row, 0), tl.rope(tl.load(qkv, (row, 0), (1, WIDTH)), c, s, HEAD))
    tl.store(keys, (at, 0), tl.rope(tl.load(qkv, (row, WIDTH), (1, WIDTH)), c, s, HEAD))
    tl.store(values, (at, 0), tl.load(qkv, (row, 2 * WIDTH), (1, WIDTH)))


@jal.kernel
def advance(position, count):
    tl.store(position, 0, tl.load(position, 0, 1) + count)


# Weights are [outputs, inputs], as files store them: linear(x, w) is x @ w.T.
rng = np.random.default_rng(0)
shapes = dict(qkv=(3 * WIDTH, WIDTH), out=(WIDTH, WIDTH), gate=(HIDDEN, WIDTH), up=(HIDDEN, WIDTH),
              down=(WIDTH, HIDDEN))
host = {name: rng.standard_normal(shape, dtype=np.float32) / shape[-1] ** 0.5 for name, shape in shapes.items()}
host |= {name: 1 + rng.standard_normal(WIDTH, dtype=np.float32) / 10 for name in ("norm1", "norm2")}
angles = np.arange(CONTEXT)[:, None] / 10000.0 ** (np.arange(HEAD // 2) / (HEAD // 2))
host |= {"cosine": np.cos(angles).astype(np.float32), "sine": np.sin(angles).astype(np.float32)}
w = {name: jal.array(value) for name, value in host.items()}
device = jal.default_device()
# ops.attention takes its position as a Python number; the library's kernel takes it from memory (docs/kernels.md).
attention = jal.library_kernel(device, f"attention_causal_f32_d{HEAD}")


class Block:
    """The steps for `count` tokens at once, and the memory between them."""

    def __init__(self, count: int):
        self.x, h, q, mixed, qkv, gate, up = (jal.empty((count, n)) for n in (*4 * [WIDTH], 3 * WIDTH, HIDDEN, HIDDEN))
        keys, values = (jal.zeros((CONTEXT, WIDTH)) for _ in range(2))  # behind the sequence: anything but NaN
        self.position = jal.zeros(1, jal.int32)
        q_heads, mixed_heads = (a.reshape(count, HEADS, HEAD).transpose(1, 0, 2) for a in (q, mixed))  # views
        x, grid = self.x, (HEADS, jal.cdiv(count, 64))
        self.steps = {
            "norm 1": lambda: ops.rmsnorm(x, w["norm1"], out=h),
            "qkv": lambda: ops.linear(h, w["qkv"], out=qkv),
            "rope": lambda: rope_and_append[count](qkv, w["cosine"], w["sine"], self.position, q, keys, values),
            "attention": lambda: attention[grid](q_heads, keys, values, self.position, mixed_heads, 1, HEAD**-0.5),
            "out": lambda: ops.linear(mixed, w["out"], out=x, accumulate=True),  # added to x: the residual
            "norm 2": lambda: ops.rmsnorm(x, w["norm2"], out=h),
            "gate": lambda: ops.linear(h, w["gate"], out=gate),
            "up": lambda: ops.linear(h, w["up"], out=up),
            "swiglu": lambda: ops.swiglu(gate, up, out=gate),
            "down": lambda: ops.linear(gate, w["down"], out=x, accumulate=True),
            "advance": lambda: advance[1](self.position, count),
        }

    def run(self) -> None:
        for step in self.steps.values():
            step()


def reference(x: np.ndarray) -> np.ndarray:
    f = {name: value.astype(np.float64) for name, value in host.items()}

    def norm(a, weight):
        return a / np.sqrt(np.mean(a * a, axis=-1, keepdims=True) + 1e-5) * weight

    def rope(a):  # [t, heads, d]: the halves of a head are turned against each other
        c, s, (left, right) = f["cosine"][:len(a), None], f["sine"][:len(a), None], np.split(a, 2, -1)
        return np.concatenate([left * c - right * s, right * c + left * s], axis=-1)

    q, k, v = (a.reshape(-1, HEADS, HEAD) for a in np.split(norm(x, f["norm1"]) @ f["qkv"].T, 3, axis=1))
    scores = np.einsum("thd,shd->hts", rope(q), rope(k)) / np.sqrt(HEAD)
    p = np.exp(np.where(np.tri(len(x)), scores, -np.inf))
    x = x + np.einsum("hts,shd->thd", p / p.sum(axis=-1, keepdims=True), v).reshape(x.shape) @ f["out"].T
    gate, h = norm(x, f["norm2"]) @ f["gate"].T, norm(x, f["norm2"])
    return x + (gate / (1 + np.exp(-gate)) * (h @ f["up"].T)) @ f["down"].T


tokens = rng.standard_normal((TOKENS, WIDTH), dtype=np.float32)
want = reference(tokens.astype(np.float64))
prefill = Block(TOKENS)
prefill.x.copy_from(tokens)
prefill.run()
check(f"all {TOKENS} tokens at once", np.allclose(prefill.x.numpy(), want, rtol=0, atol=1e-4))

# Decoding takes one token at a time; the cache holds the keys and values of those before. Its steps are recorded once
# and replayed for each token. The graph counts the position itself.
decode, stream = Block(1), jal.Stream(device)
decode.run()  # kernels are built and loaded before recording
device.synchronize()
with stream, stream.capture() as graph:
    decode.run()
results, inputs, micros, times = jal.empty((TOKENS, WIDTH)), jal.array(tokens), {}, {}
for way, launch in (("step by step", decode.run), ("graph", graph.launch)):
    decode.position.fill(0)
    device.synchronize()
    begin = time.perf_counter()
    with stream:
        for t in range(TOKENS):
            decode.x.copy_from(inputs[t:t + 1])
            launch()
            results[t:t + 1].copy_from(decode.x)
        stream.synchronize()
    micros[way] = (time.perf_counter() - begin) / TOKENS * 1e6
    check(f"token by token, {way}", np.allclose(results.numpy(), want, rtol=0, atol=1e-4))
check(f"the graph has {graph.nodes} launches, and counts", graph.nodes == 11 and decode.position.item() == TOKENS)
print("this machine (nothing about the chip), us a token: "
      + ", ".join(f"{way} {us:.0f}" for way, us in micros.items()))

chip = f"modelled, assumed chip (configuration {device.properties['config_name']})"
print(f"\n{chip}, us of each step")
for title, block, position in ((f"{TOKENS} tokens at once", prefill, 0), (f"token {TOKENS} alone", decode, TOKENS - 1)):
    block.position.fill(position)
    times[title] = t = {name: jal.measure(step).device_ns / 1e3 for name, step in block.steps.items()}
    print(f"  {title}, {sum(t.values()):.1f} in all: " + ", ".join(f"{step} {us:.1f}" for step, us in t.items()))


def draw(plt):
    plt.figure(figsize=(9, 4))
    for n, (title, t) in enumerate(times.items()):
        plt.bar(np.arange(len(t)) + 0.4 * n, t.values(), 0.4, label=title, tick_label=list(t))
    plt.ylabel("modelled us")
    plt.title(f"A block of width {WIDTH}: {chip}")
    plt.legend()


picture(draw)
