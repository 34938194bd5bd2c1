"""A byte-level BPE, GPT-2 style: training and encoding. Owns merges; knows nothing of models."""
import collections
import re

# GPT-2's split without \p{..}, which `re` lacks: [^\W\d_] are letters, \d digits.
SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def byte_alphabet():
    """byte -> the printable character that stands for it in token text (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {b: chr(b) for b in printable}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return table


ALPHABET = byte_alphabet()


def spell(text):
    return "".join(ALPHABET[b] for b in text.encode())


def train(text, vocabulary_size):
    """Returns (tokens, merges): all 256 bytes first, then merged tokens in order of merging."""
    words = collections.Counter(spell(w) for w in SPLIT.findall(text))
    parts = {w: list(w) for w in words}
    tokens, merges = [ALPHABET[b] for b in range(256)], []
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for w, n in words.items():
        for pair in zip(parts[w], parts[w][1:]):
            pairs[pair] += n
            where[pair].add(w)
    while len(tokens) < vocabulary_size and pairs:
        best = max(pairs, key=lambda p: (pairs[p], p))  # ties by text: the same result on every machine
        if pairs[best] < 2:
            break
        merges.append(best)
        tokens.append(best[0] + best[1])
        for w in list(where[best]):
            p, n = parts[w], words[w]
            for pair in zip(p, p[1:]):
                pairs[pair] -= n
            merged, i = [], 0
            while i < len(p):
                if i + 1 < len(p) and (p[i], p[i + 1]) == best:
                    merged.append(p[i] + p[i + 1])
                    i += 2
                else:
                    merged.append(p[i])
                    i += 1
            parts[w] = merged
            for pair in zip(merged, merged[1:]):
                pairs[pair] += n
                where[pair].add(w)
        del pairs[best]
    return tokens, merges


class Encoder:
    def __init__(self, tokens, merges):
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.rank = {m: i for i, m in enumerate(merges)}
        self.cache = {}

    def word(self, w):
        if w not in self.cache:
            p = list(w)
            while len(p) > 1:
                ranked = [(self.rank.get(pair, 1 << 30), i) for i, pair in enumerate(zip(p, p[1:]))]
                rank, i = min(ranked)
                if rank == 1 << 30:
                    break
                p[i:i + 2] = [p[i] + p[i + 1]]
            self.cache[w] = [self.ids[t] for t in p]
        return self.cache[w]

    def __call__(self, text):
        return [i for w in SPLIT.findall(text) for i in self.word(spell(w))]
