"""Writes GGUF 'llama' models with random weights. Owns their shapes, scales and small vocabularies.

By hand: random_model.py OUT.gguf [--shape smollm2-135m] [--dtype Q4_0] [--family spm] ...
"""
import argparse
import collections
import pathlib
import sys

import numpy as np

import llama_reference as reference

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "samples" / "llm" / "train"))
import gguf  # noqa: E402

ENGLISH = """The little dog ran over the hill and the bear went with the other children to the river. "We're going
home," said the girl, and she'll say that it wasn't the end of the story. There were 12 or 13 of them in the house that
morning, and the sun was shining in the sky. Once upon a time there was another brave boy; he loved the sea, the wind
and the rain. He didn't know what he would find there, but they were all very happy when the evening
came and he was safe at home."""

SHAPES = {"smollm2-135m": dict(width=576, layers=30, heads=9, kv_heads=3, ffn=1536, vocabulary=49152, tied=True,
                               freq_base=100000.0, context=8192),
          "llama-3.2-1b": dict(width=2048, layers=16, heads=32, kv_heads=8, ffn=8192, vocabulary=128256, tied=True,
                               freq_base=500000.0, context=8192)}


def merges(words, count):
    """[(left, right)] of a byte-pair training on words (sequences of symbols)."""
    words, out = collections.Counter(tuple(w) for w in words), []
    while len(out) < count:
        pairs = collections.Counter()
        for w, n in words.items():
            for pair in zip(w, w[1:]):
                pairs[pair] += n
        out.append(max(pairs, key=lambda p: (pairs[p], p)))
        words = collections.Counter({tuple(reference._merge(w, lambda *p: 0 if p == out[-1] else None)): n
                                     for w, n in words.items()})
    return out


def bpe_vocabulary(size):
    words = [[reference.ALPHABET[b] for b in w.encode()] for w in reference.gpt2_words(ENGLISH)]
    learned = merges(words, 60)
    tokens = [reference.ALPHABET[b] for b in range(256)] + [a + b for a, b in learned] + ["<|endoftext|>"]
    end = len(tokens) - 1
    tokens += [f"dummy{i}" for i in range(len(tokens), size or 0)]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if i == end else 1 for i in range(len(tokens))],
            "tokenizer.ggml.merges": [" ".join(m) for m in learned],
            "tokenizer.ggml.bos_token_id": end, "tokenizer.ggml.eos_token_id": end}


def spm_vocabulary(size):
    text = "▁" + ENGLISH.replace("\n", " ").replace(" ", "▁")
    words = ["▁" + w for w in text.split("▁") if w]
    pieces = [a + b for a, b in merges(words, 100)]
    singles = sorted(set(text) | set("é世"))
    scored = [(p, -float(i)) for i, p in enumerate(dict.fromkeys(pieces))]
    scored += [(c, -1000.0 - i) for i, c in enumerate(singles)]
    np.random.default_rng(0).shuffle(scored)  # ids say nothing of the scores
    scored = [(p, float(s)) for p, s in scored]
    scored += [(f"dummy{i}", -1e6) for i in range(259 + len(scored), size or 0)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(p for p, _ in scored)]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + [s for _, s in scored],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(scored),
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}


class Tensors:
    """A list of (name, array, dtype) for gguf.write that makes each array when asked, so large models fit in memory."""

    def __init__(self, seed):
        self.seed, self.entries = seed, []

    def add(self, name, dtype, *shape, std=None, between=(0.5, 1.5)):
        """Normal with deviation std, or else uniform."""
        self.entries.append((name, dtype, shape, std, between))

    def __len__(self):
        return len(self.entries)

    def __iter__(self):
        for i, (name, dtype, shape, std, (low, high)) in enumerate(self.entries):
            r = np.random.default_rng([self.seed, i])
            if std is None:
                x = r.uniform(low, high, shape).astype(np.float32)
            else:
                x = r.standard_normal(shape, np.float32)
                x *= np.float32(std)
            yield name, x, dtype


def build(*, dtype="F32", width=64, layers=2, heads=4, kv_heads=2, ffn=96, family="bpe", tied=True, freq_base=10000.0,
          dimension_count=None, linear_factor=None, rope_freqs=False, head_size=None, context=512, vocabulary=None,
          seed=0):
    """(metadata, tensors) for gguf.write. rope_freqs: with that tensor; head_size: if not width / heads; vocabulary:
    its size, filled up with tokens that no text has."""
    head = head_size or width // heads
    m = {"general.architecture": "llama", "general.name": "random", "general.alignment": 32,
         "llama.context_length": context, "llama.embedding_length": width, "llama.block_count": layers,
         "llama.feed_forward_length": ffn, "llama.attention.head_count": heads,
         "llama.attention.head_count_kv": kv_heads,
         "llama.rope.dimension_count": dimension_count or head, "llama.rope.freq_base": float(freq_base),
         "llama.attention.layer_norm_rms_epsilon": 1e-5}
    if head_size:
        m |= {"llama.attention.key_length": head, "llama.attention.value_length": head}
    if linear_factor:
        m |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(linear_factor)}
    m |= {"bpe": bpe_vocabulary, "spm": spm_vocabulary}[family](vocabulary)
    m["llama.vocab_size"] = size = len(m["tokenizer.ggml.tokens"])

    t = Tensors(seed)
    t.add("token_embd.weight", dtype, size, width, std=1)
    for i in range(layers):
        def matrix(name, rows, columns):
            t.add(f"blk.{i}.{name}.weight", dtype, rows, columns, std=columns ** -0.5)
        t.add(f"blk.{i}.attn_norm.weight", "F32", width)
        matrix("attn_q", heads * head, width)
        matrix("attn_k", kv_heads * head, width)
        matrix("attn_v", kv_heads * head, width)
        matrix("attn_output", width, heads * head)
        t.add(f"blk.{i}.ffn_norm.weight", "F32", width)
        matrix("ffn_gate", ffn, width)
        matrix("ffn_up", ffn, width)
        matrix("ffn_down", width, ffn)
    # Of both signs: a tied model would otherwise repeat its last token for ever. Makes the logits' deviation about 3.
    t.add("output_norm.weight", "F32", width, std=3 * (width ** -0.5 if tied else 1))
    if not tied:
        t.add("output.weight", dtype, size, width, std=width ** -0.5)
    if rope_freqs:
        t.add("rope_freqs.weight", "F32", m["llama.rope.dimension_count"] // 2, between=(1, 8))
    return m, t


def write(path, **options):
    gguf.write(path, *build(**options))


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("out")
    o.add_argument("--shape", choices=SHAPES, help="a known model's shape; further options override it")
    o.add_argument("--dtype", choices=gguf.TYPE_ID)
    o.add_argument("--family", choices=["bpe", "spm"])
    for name in ("width", "layers", "heads", "kv-heads", "ffn", "dimension-count", "head-size", "context",
                 "vocabulary", "seed"):
        o.add_argument("--" + name, type=int)
    o.add_argument("--freq-base", type=float)
    o.add_argument("--linear-factor", type=float)
    o.add_argument("--rope-freqs", action="store_true", default=None)
    o.add_argument("--tied", action=argparse.BooleanOptionalAction)
    o = {k: v for k, v in vars(o.parse_args()).items() if v is not None}
    write(o.pop("out"), **SHAPES.get(o.pop("shape", None), {}) | o)


if __name__ == "__main__":
    main()
