"""An independent double-precision reference of GGUF 'llama' models, to check the C++ implementation against.

Owns: reading GGUF 2 and 3, dequantising to float64, the forward pass, both tokenizers and detokenizing. Shares no code
with the program or with the GGUF writer. Written for clarity: it trusts its files and is meant for small models.
"""
import mmap
import struct
import unicodedata

import numpy as np

SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, Q4_0, Q8_0, BF16, MXFP4 = 0, 1, 2, 8, 30, 39
BYTES_PER_32 = {F32: 128, F16: 64, Q4_0: 18, Q8_0: 34, BF16: 64, MXFP4: 17}
CONTROL, UNKNOWN, USER, BYTE = 3, 2, 4, 6  # tokenizer.ggml.token_type


class Gguf:
    """metadata: {key: value}; tensors: {name: (ggml dims, type, byte offset in the file)};
    at: {label: byte offset} of every header field, so that tests can make single fields lie."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self.pos, self.at, self.metadata, self.tensors = 0, {}, {}, {}
        assert self.data[:4] == b"GGUF"
        self.at["magic"], self.pos = 0, 4
        version = self._scalar("I", "version")
        assert version in (2, 3), version
        tensor_count, metadata_count = self._scalar("Q", "tensor count"), self._scalar("Q", "metadata count")
        for _ in range(metadata_count):
            start = self.pos
            key = self._string()
            self.at[key + ": key length"] = start
            self.metadata[key] = self._value(self._scalar("I", key + ": type"), key)
        self.at["tensors"] = self.pos
        for _ in range(tensor_count):
            start = self.pos
            name = self._string()
            self.at[name + ": name length"] = start
            dims = [self._scalar("Q", f"{name}: dim {i}") for i in range(self._scalar("I", name + ": rank"))]
            kind = self._scalar("I", name + ": type")
            self.tensors[name] = dims, kind, self._scalar("Q", name + ": offset")
        alignment = self.metadata.get("general.alignment", 32)
        self.at["data"] = start = -(-self.pos // alignment) * alignment
        self.tensors = {name: (dims, kind, start + offset) for name, (dims, kind, offset) in self.tensors.items()}

    def _scalar(self, code, label=None):
        if label:
            self.at[label] = self.pos
        value, = struct.unpack_from("<" + code, self.data, self.pos)
        self.pos += struct.calcsize("<" + code)
        return value

    def _string(self, label=None):
        n = self._scalar("Q", label)
        self.pos += n
        return self.data[self.pos - n:self.pos].decode("utf-8", "surrogateescape")

    def _value(self, kind, label=None):
        if kind == STRING:
            return self._string(label and label + ": string length")
        if kind == ARRAY:
            element = self._scalar("I", label and label + ": element type")
            n = self._scalar("Q", label and label + ": count")
            return [self._value(element) for _ in range(n)]
        return self._scalar(SCALAR[kind], label and label + ": value")

    def end(self, name):
        """Where the data of a tensor ends."""
        dims, kind, offset = self.tensors[name]
        return offset + int(np.prod(dims)) * BYTES_PER_32[kind] // 32

    def tensor(self, name):
        """float64, slowest dimension first."""
        dims, kind, offset = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, self.end(name) - offset, offset)
        if kind == F32:
            x = raw.view("<f4").astype(np.float64)
        elif kind == F16:
            x = raw.view("<f2").astype(np.float64)
        elif kind == BF16:
            x = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        elif kind == MXFP4:
            blocks = raw.reshape(-1, BYTES_PER_32[kind])
            e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
            x = e2m1[np.hstack([blocks[:, 1:] & 15, blocks[:, 1:] >> 4])] * 2.0 ** (blocks[:, :1].astype(np.float64) - 127)
        else:
            blocks = raw.reshape(-1, BYTES_PER_32[kind])
            scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float64)
            if kind == Q8_0:
                q = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float64)
            else:
                q = np.hstack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4]).astype(np.float64) - 8
            x = q * scale
        return x.reshape(dims[::-1])


class Model:
    def __init__(self, path):
        g = Gguf(path)
        m = self.metadata = g.metadata
        assert m["general.architecture"] == "llama"
        self.w = {name: g.tensor(name) for name in g.tensors}
        self.layers, self.heads = m["llama.block_count"], m["llama.attention.head_count"]
        self.kv_heads = m.get("llama.attention.head_count_kv", self.heads)
        self.head = m.get("llama.attention.key_length", m["llama.embedding_length"] // self.heads)
        self.value_head = m.get("llama.attention.value_length", m["llama.embedding_length"] // self.heads)
        self.eps = m["llama.attention.layer_norm_rms_epsilon"]
        self.rotated = m.get("llama.rope.dimension_count", self.head)
        self.frequency = m.get("llama.rope.freq_base", 10000.0) ** (-2.0 * np.arange(self.rotated // 2) / self.rotated)
        if "rope_freqs.weight" in self.w:
            self.frequency = self.frequency / self.w["rope_freqs.weight"]
        scaling = m.get("llama.rope.scaling.type", "none")
        assert scaling in ("none", "linear"), scaling
        if scaling == "linear":
            self.frequency = self.frequency / m["llama.rope.scaling.factor"]

    def _norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[name]

    def _rotate(self, x, positions):
        """x: [n, heads, head]; turns pair (2i, 2i+1) of the first `rotated` elements by position * frequency[i]."""
        angle = positions[:, None, None] * self.frequency
        even, odd = x[..., 0:self.rotated:2], x[..., 1:self.rotated:2]
        y = x.copy()
        y[..., 0:self.rotated:2] = even * np.cos(angle) - odd * np.sin(angle)
        y[..., 1:self.rotated:2] = even * np.sin(angle) + odd * np.cos(angle)
        return y

    def _forward(self, tokens, cache):
        """Final hidden states of `tokens`, which follow what `cache` ([keys, values] per layer) holds; extends it."""
        x = self.w["token_embd.weight"][np.asarray(tokens)]
        n, past, group = len(tokens), len(cache[0][0]), self.heads // self.kv_heads
        positions = np.arange(past, past + n)
        hidden = np.arange(past + n)[None, :] > positions[:, None]
        for i in range(self.layers):
            w = lambda name: self.w[f"blk.{i}.{name}.weight"]  # noqa: E731
            h = self._norm(x, f"blk.{i}.attn_norm.weight")
            q = self._rotate((h @ w("attn_q").T).reshape(n, self.heads, self.head), positions)
            k = self._rotate((h @ w("attn_k").T).reshape(n, self.kv_heads, self.head), positions)
            v = (h @ w("attn_v").T).reshape(n, self.kv_heads, self.value_head)
            keys, values = cache[i] = [np.concatenate(pair) for pair in zip(cache[i], (k, v))]
            heads = []
            for j in range(self.heads):
                score = q[:, j] @ keys[:, j // group].T / np.sqrt(self.head)
                score[hidden] = -np.inf
                p = np.exp(score - score.max(-1, keepdims=True))
                heads.append(p / p.sum(-1, keepdims=True) @ values[:, j // group])
            x = x + np.concatenate(heads, -1) @ w("attn_output").T
            h = self._norm(x, f"blk.{i}.ffn_norm.weight")
            gate = h @ w("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        return self._norm(x, "output_norm.weight")

    def _cache(self):
        return [[np.zeros((0, self.kv_heads, self.head)), np.zeros((0, self.kv_heads, self.value_head))]
                for _ in range(self.layers)]

    def _head(self, x):
        return x @ self.w.get("output.weight", self.w["token_embd.weight"]).T

    def logits(self, tokens):
        """float64 [n, vocabulary]."""
        return self._head(self._forward(tokens, self._cache()))

    def greedy(self, tokens, n):
        """The n tokens that follow, always the most likely one."""
        cache, out = self._cache(), []
        pending = list(tokens)
        for _ in range(n):
            out.append(int(self._head(self._forward(pending, cache)[-1]).argmax()))
            pending = out[-1:]
        return out


def byte_alphabet():
    """GPT-2: byte -> the printable character that stands for it in token text."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in itself]
    return {b: chr(b) if b in itself else chr(256 + others.index(b)) for b in range(256)}


ALPHABET = byte_alphabet()
BYTE_OF = {c: b for b, c in ALPHABET.items()}
SPACES = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def _class(c):
    if ord(c) in SPACES:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(c)[0], "other")


def gpt2_words(text):
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    words, i = [], 0
    while i < len(text):
        start = i
        suffix = next((s for s in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(s, i)), None)
        first = i + (text[i] == " " and i + 1 < len(text))
        if suffix:
            i += len(suffix)
        elif _class(text[first]) != "space":
            i = first
            while i < len(text) and _class(text[i]) == _class(text[first]):
                i += 1
        else:
            while i < len(text) and _class(text[i]) == "space":
                i += 1
            if i < len(text) and i - start > 1:
                i -= 1  # the last space belongs to what follows
        words.append(text[start:i])
    return words


def _merge(parts, rank):
    """Merges the adjacent pair of lowest rank (the leftmost among equals) until none has one.
    rank(a, b): a number or None."""
    parts = list(parts)
    while True:
        ranked = [(r, i) for i, r in enumerate(map(rank, parts, parts[1:])) if r is not None]
        if not ranked:
            return parts
        _, i = min(ranked)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def encode_bpe(m, text):
    ids = {t: i for i, t in enumerate(m["tokenizer.ggml.tokens"])}
    ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(m["tokenizer.ggml.merges"])}
    return [ids[part] for word in gpt2_words(text)
            for part in _merge([ALPHABET[b] for b in word.encode()], lambda a, b: ranks.get((a, b)))]


def encode_spm(m, text):
    tokens, scores = m["tokenizer.ggml.tokens"], m["tokenizer.ggml.scores"]
    ids = {t: i for i, t in enumerate(tokens)}
    if text and m.get("tokenizer.ggml.add_space_prefix", True):
        text = " " + text
    out = []
    for part in _merge(text.replace(" ", "▁"), lambda a, b: -scores[ids[a + b]] if a + b in ids else None):
        out += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return out


def encode(m, text):
    """Token ids of a text, with the beginning-of-text token where the model asks for one."""
    spm = m["tokenizer.ggml.model"] == "llama"
    bos = [m["tokenizer.ggml.bos_token_id"]] if m.get("tokenizer.ggml.add_bos_token", spm) else []
    return bos + (encode_spm if spm else encode_bpe)(m, text)


def decode(m, tokens):
    """The bytes that tokens stand for; control tokens stand for none."""
    spm, out = m["tokenizer.ggml.model"] == "llama", b""
    for t in tokens:
        text, kind = m["tokenizer.ggml.tokens"][t], m["tokenizer.ggml.token_type"][t]
        if kind == BYTE:
            out += bytes([int(text[3:5], 16)])
        elif kind == USER:
            out += text.encode()
        elif kind not in (CONTROL, UNKNOWN):
            out += text.replace("▁", " ").encode() if spm else bytes(BYTE_OF[c] for c in text)
    return out
