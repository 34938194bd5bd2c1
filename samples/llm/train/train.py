"""Trains the small storyteller that samples/llm ships, and writes it as GGUF.

    python3 train.py --out ../model            # over an hour on one core; resumes from its checkpoint

Owns the network, the schedule and the export. The text comes from corpus.py, the tokenizer from
bpe.py. Same seed, same thread count, same PyTorch: same weights.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bpe
import corpus
import gguf

VOCABULARY, DIM, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 1568, 256, 4, 8, 4, 704, 256
HEAD = DIM // HEADS
EPS, THETA = 1e-5, 10000.0
END = "<|endoftext|>"


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight


def rope(x, cos, sin):
    """x [batch, heads, tokens, HEAD]; pairs are neighbours (2i, 2i+1), as llama.cpp stores Llama models."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ffn_norm = Norm(), Norm()
        self.attn_q = nn.Linear(DIM, DIM, bias=False)
        self.attn_k = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.attn_v = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.attn_output = nn.Linear(DIM, DIM, bias=False)
        self.ffn_gate = nn.Linear(DIM, FFN, bias=False)
        self.ffn_up = nn.Linear(DIM, FFN, bias=False)
        self.ffn_down = nn.Linear(FFN, DIM, bias=False)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        h = self.attn_norm(x)
        q = rope(self.attn_q(h).view(b, t, HEADS, HEAD).transpose(1, 2), cos, sin)
        k = rope(self.attn_k(h).view(b, t, KV_HEADS, HEAD).transpose(1, 2), cos, sin)
        v = self.attn_v(h).view(b, t, KV_HEADS, HEAD).transpose(1, 2)
        k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
        p = (q * HEAD ** -0.5 @ k.transpose(-1, -2) + mask).softmax(-1)
        x = x + self.attn_output((p @ v).transpose(1, 2).reshape(b, t, DIM))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Storyteller(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embd = nn.Embedding(VOCABULARY, DIM)
        self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.output_norm = Norm()
        angle = torch.outer(torch.arange(CONTEXT).float(), THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -math.inf).triu(1), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[:t], self.sin[:t], self.mask[:t, :t])
        return self.output_norm(x) @ self.token_embd.weight.T  # tied


def export(model, tokens, merges, path, dtype="BF16"):
    metadata = {
        "general.architecture": "llama", "general.name": "Jalapeno Storyteller 3M", "general.license": "same as libjalapeno",
        "general.alignment": gguf.ALIGNMENT, "llama.context_length": CONTEXT, "llama.embedding_length": DIM, "llama.block_count": LAYERS,
        "llama.feed_forward_length": FFN, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": HEAD, "llama.rope.freq_base": THETA, "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.vocab_size": VOCABULARY, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t == END else 1 for t in tokens], "tokenizer.ggml.merges": [" ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": tokens.index(END), "tokenizer.ggml.eos_token_id": tokens.index(END), "tokenizer.ggml.add_bos_token": True}
    tensors = [(name, value.detach().numpy(), dtype if value.dim() == 2 else "F32") for name, value in model.named_parameters()]
    gguf.write(path, metadata, tensors)


def draw(losses, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=110)
    step, train, held = zip(*losses)
    axes.plot(step, train, label="training")
    axes.plot(step, held, label="held out")
    axes.set_xlabel("step"), axes.set_ylabel("loss (nats per token)"), axes.set_yscale("log"), axes.grid(alpha=0.3), axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--out", default="../model", help="folder for the GGUF file, the loss curve and losses.json")
    o.add_argument("--checkpoint", default="checkpoint.pt")
    o.add_argument("--stories", type=int, default=60000)
    o.add_argument("--steps", type=int, default=4000)
    o.add_argument("--batch", type=int, default=8)
    o.add_argument("--seed", type=int, default=1)
    o.add_argument("--threads", type=int, default=1)
    o = o.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    os.makedirs(o.out, exist_ok=True)

    texts = list(corpus.stories(o.stories, o.seed))
    tokens, merges = bpe.train("\n".join(texts[:20000]), VOCABULARY - 1)
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - 1 - len(tokens))] + [END]
    encode, end = bpe.Encoder(tokens, merges), VOCABULARY - 1
    stream = np.concatenate([np.array([end] + encode(t), np.int16) for t in texts])
    held, stream = torch.tensor(stream[:40000].astype(np.int64)), torch.tensor(stream[40000:].astype(np.int64))
    print(f"{len(stream)} training tokens, {len(merges)} merges", flush=True)

    model = Storyteller()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95))
    start, losses = 0, []
    if os.path.exists(o.checkpoint):
        state = torch.load(o.checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, losses = state["step"], state["losses"]

    def held_out_loss():
        with torch.no_grad():
            rows = held[:16 * (CONTEXT + 1)].view(16, CONTEXT + 1)
            return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).item()

    began, running = time.time(), None
    for step in range(start, o.steps):
        draw_seed = torch.Generator().manual_seed(o.seed * 1_000_003 + step)  # resuming sees the same batches
        at = torch.randint(0, len(stream) - CONTEXT - 1, (o.batch,), generator=draw_seed)
        rows = torch.stack([stream[i:i + CONTEXT + 1] for i in at])
        rate = 2e-3 * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / o.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == o.steps:
            losses.append((step + 1, running, held_out_loss()))
            print(f"step {step + 1} loss {running:.4f} held out {losses[-1][2]:.4f} {time.time() - began:.0f} s", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == o.steps:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "losses": losses}, o.checkpoint)
            export(model, tokens, merges, os.path.join(o.out, "storyteller-3m-bf16.gguf"))
            draw(losses, os.path.join(o.out, "loss.png"))
            with open(os.path.join(o.out, "losses.json"), "w") as f:
                json.dump(losses, f)


if __name__ == "__main__":
    main()
