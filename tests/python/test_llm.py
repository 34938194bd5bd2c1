"""Checks the jalapeno-llm program against the double-precision reference, and that it refuses bad input in one line.

Needs the environment variable JALAPENO_LLM, the program's path.
"""
import json
import os
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import llama_reference as reference  # noqa: E402
import random_model  # noqa: E402

SHIPPED = HERE.parents[1] / "samples" / "llm" / "model" / "storyteller-3m-bf16.gguf"
PROGRAM = os.environ.get("JALAPENO_LLM")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="JALAPENO_LLM, the path of jalapeno-llm, is not set")

DTYPES, FAMILIES, LENGTHS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "MXFP4"], ["bpe", "spm"], [1, 2, 17, 70, 300]
ROPE = {"linear": dict(linear_factor=4), "rope_freqs": dict(rope_freqs=True), "partial": dict(dimension_count=8),
        "large base": dict(freq_base=5e5), "all": dict(linear_factor=2.5, rope_freqs=True, dimension_count=12)}
SHAPES = {"untied": dict(tied=False), "kv_heads = heads": dict(kv_heads=4), "one kv_head": dict(kv_heads=1),
          "key_length": dict(head_size=32), "one layer, wide ffn": dict(layers=1, ffn=416)}
TEXTS = ["Once upon a time there was a little dog.", "", " ", "a", "  two  and   three spaces ", "\n",
         "line\nbreak\n\n  tab\there",
         "We're sure it's what they'd say: I'll, I've, I'm, don't, 'tis, 'S 'll", "1 22 333 4444 3.14159 a1b2 １２ ½ Ⅷ",
         "naïve café – “quoted” … Ωμέγα привет 世界 日本語 العربية 👩‍🚀🎉 e\u0301",
         "nbsp\u00a0em\u2003ideographic\u3000zwsp\u200bend",
         "snake_case foo(bar)->baz[0]; x+=1 // !!??", "trailing space ", "aaaaaaaaaaaaa hahahaha thethethe",
         "▁ Ġ <0x41>"]


def run(*arguments):
    command = [PROGRAM, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, timeout=200, env={**os.environ, "JAL_LOG": "off"})


def succeed(*arguments):
    result = run(*arguments)
    assert result.returncode == 0, (arguments, result.returncode, result.stderr)
    return result.stdout


def comma(tokens):
    return ",".join(map(str, tokens))


def generate(path, *arguments):
    """(the bytes generated, the report)."""
    text, report = succeed("--model", path, "--ignore-end", "--json", *arguments).rstrip(b"\n").rsplit(b"\n", 1)
    return text, json.loads(report)


def some_tokens(vocabulary, n):
    return np.random.default_rng(n).integers(0, vocabulary, n).tolist()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="session")
def make(folder):
    """Options of random_model -> (path, reference model), each made once."""
    made = {}

    def get(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            path = folder / f"random-{len(made)}.gguf"
            random_model.write(path, **options)
            made[key] = path, reference.Model(path)
        return made[key]
    return get


@pytest.fixture(scope="session")
def shipped():
    return SHIPPED, reference.Model(SHIPPED)


def check_logits(path, model, lengths, limit, out, *options):
    """Largest error as a share of the reference's range, at most `limit`. One reference run serves all lengths, as
    positions see no later tokens."""
    tokens = some_tokens(len(model.metadata["tokenizer.ggml.tokens"]), max(lengths))
    expected = model.logits(tokens)
    errors = {}
    for n in lengths:
        succeed("--model", path, "--tokens", comma(tokens[:n]), "--dump-logits", out, *options)
        seen = np.load(out)
        assert seen.dtype == np.float32 and seen.shape == expected[:n].shape
        errors[n] = np.abs(seen - expected[:n]).max() / np.ptp(expected[:n])
    assert all(e <= limit for e in errors.values()), f"error/range by length {errors}, at most {limit} allowed"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits(make, folder, dtype, family):
    check_logits(*make(dtype=dtype, family=family), LENGTHS, 1e-3 if dtype == "F32" else 0.02, folder / "logits.npy")


@pytest.mark.parametrize("kv", ["f32", "bf16", "f16", "q8_0"])
def test_logits_by_type_of_the_cache(make, folder, kv):
    check_logits(*make(head_size=32, seed=7), [2, 300], 1e-3 if kv == "f32" else 0.02, folder / "logits.npy", "--kv", kv)


def test_types_of_the_cache_that_cannot_be(make):
    path, _ = make()
    for kv, said in (("q4_0", b'"q4_0", expected f32, bf16, f16 or q8_0'), ("q8_0", b"blocks of 32, a head of this model 16")):
        result = run("--model", path, "--prompt", "a", "-n", 1, "--kv", kv)
        assert result.returncode == 1 and said in result.stderr, result.stderr


@pytest.mark.parametrize("name", [*ROPE, *SHAPES])
def test_logits_of_variants(make, folder, name):
    check_logits(*make(**{**ROPE, **SHAPES}[name], seed=5), [1, 70], 1e-3, folder / "logits.npy")


def test_logits_of_the_shipped_model(shipped, folder):
    context = shipped[1].metadata["llama.context_length"]
    check_logits(*shipped, [*(n for n in LENGTHS if n < context), context], 0.02, folder / "logits.npy")


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizers(make, shipped, text):
    for path, model in [make(family="bpe"), make(family="spm"), shipped]:
        ids = [int(i) for i in succeed("--model", path, "--tokenize", text).decode().strip().split(",") if i]
        assert ids == reference.encode(model.metadata, text), path


@pytest.mark.parametrize("option", ["add_bos_token", "add_space_prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_options(folder, family, option):
    metadata, tensors = random_model.build(family=family, layers=1)
    for value in (False, True):
        metadata[f"tokenizer.ggml.{option}"] = value
        random_model.gguf.write(folder / "option.gguf", metadata, tensors)
        ids = succeed("--model", folder / "option.gguf", "--tokenize", "the dog").decode().strip()
        assert ids == comma(reference.encode(metadata, "the dog")), value


def margin(model, tokens, n):
    """The least lead, in logits, that the most likely of the n last tokens had."""
    top = np.sort(model.logits(tokens)[-n - 1:-1])
    return (top[:, -1] - top[:, -2]).min()


def test_a_long_context_shares_out_its_keys(make):
    """From a context of 2,048 on a step's attention is split over keys: the tokens stay the same."""
    path, model = make(context=4096, seed=6)
    prompt = some_tokens(250, 400)
    expected = model.greedy(prompt, 24)
    assert margin(model, prompt + expected, 24) > 1e-3, "choose another seed: a tie says nothing"
    modelled = []
    for context in (1024, 4096):
        text, report = generate(path, "--tokens", comma(prompt), "-n", 24, "--temperature", 0, "--context", context)
        assert text == reference.decode(model.metadata, expected), context
        modelled.append(report["decode"]["modelled_chip"]["tokens_per_second"])
    assert modelled[0] != modelled[1], "both contexts ran the same kernels"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy(make, family):
    path, model = make(family=family, seed=6)
    prompt = some_tokens(250, 9)
    expected = model.greedy(prompt, 128)
    assert margin(model, prompt + expected, 128) > 1e-3, "choose another seed: a tie says nothing"
    text, report = generate(path, "--tokens", comma(prompt), "-n", 128, "--temperature", 0)
    assert text == reference.decode(model.metadata, expected)
    assert (report["prefill"]["tokens"], report["decode"]["tokens"]) == (9, 127)


def test_greedy_after_a_prompt(make):
    path, model = make(seed=6)
    prompt = "The little dog"
    start = reference.encode(model.metadata, prompt)
    expected = model.greedy(start, 40)
    assert margin(model, start + expected, 40) > 1e-3
    text, _ = generate(path, "--prompt", prompt, "-n", 40, "--temperature", 0)
    assert text == prompt.encode() + reference.decode(model.metadata, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides(make, family):
    path, _ = make(family=family)
    arguments = "--prompt", "The dog", "-n", 60, "--temperature", 1, "--seed"
    a, b, c = (generate(path, *arguments, seed)[0] for seed in (7, 7, 8))
    assert a == b != c


# Bad input: exit code 1 and one line that names the value.


def refuse(names, *arguments):
    """names: alternatives, any of which the message has to contain, in any case; a number has to stand by itself,
    outside the path of the model."""
    result = run(*arguments)
    message = result.stderr.decode()
    assert result.returncode == 1, (arguments, result.returncode, message)
    assert message.endswith("\n") and message.count("\n") == 1, message
    rest = message.replace(str(arguments[1]), "")
    found = [n for n in names if (re.search(rf"(?<!\w){n}(?!\w)", rest) if isinstance(n, int) else
                                  str(n).lower() in message.lower())]
    assert found, f"names none of {names}: {message}"


def refuse_model(path, *names):
    refuse(names, "--model", path, "--tokens", "1,2", "-n", 1)


@pytest.fixture(scope="session")
def small(folder):
    """(bytes, parsed) of a small good model."""
    path = folder / "small.gguf"
    random_model.write(path, layers=1, width=32, heads=2, kv_heads=1, ffn=32)
    return path.read_bytes(), reference.Gguf(path)


def test_missing_file(folder):
    refuse_model(folder / "absent.gguf", folder / "absent.gguf")


def test_directory(folder):
    refuse_model(folder, folder)


CUTS = {"empty": 0, "in the magic": 3, "after the magic": 4, "in the version": 6, "after the version": 8,
        "in the tensor count": 12, "in the metadata count": 20, "after the counts": 24, "in the first key": 30,
        "in the tokens": "tokenizer.ggml.tokens: count",
        "before the tensors": "tensors", "in a tensor's name": "output_norm.weight: name length",
        "in a tensor's dims": "output_norm.weight: dim 0", "before an offset": "output_norm.weight: offset",
        "before the data": "data"}


@pytest.mark.parametrize("cut", [*CUTS, "in the data", "last byte"])
def test_truncated(small, folder, cut):
    data, parsed = small
    ends = {"in the data": parsed.end("token_embd.weight") - 1, "last byte": max(map(parsed.end, parsed.tensors)) - 1}
    n = {**CUTS, **ends}[cut]
    path = folder / "truncated.gguf"
    path.write_bytes(data[:parsed.at[n] if isinstance(n, str) else n])
    refuse_model(path, path)


# (field of the header, struct code, lie, what the message may name: the lie itself and these)
KEY, TENSOR = "llama.embedding_length", "blk.0.attn_q.weight"
LIES = [("magic", "4s", b"GGML", "magic", "gguf"), ("magic", "4s", b"\0\0\0\0", "magic", "gguf"),
        *[("version", "I", v) for v in (0, 1, 4, 0x03000000, 2**32 - 1)],
        *[("tensor count", "Q", v, "tensor") for v in (0, 1, 13, 2**31, 2**60, 2**63, 2**64 - 1)],
        *[("metadata count", "Q", v, "metadata", "tensor") for v in (0, 1, 10, 2**31, 2**60, 2**63, 2**64 - 1)],
        *[(KEY + ": key length", "Q", v, "value type") for v in (0, 2**31, 2**40, 2**63, 2**64 - 1)],
        *[(KEY + ": type", "I", v, KEY) for v in (8, 9, 13, 255, 2**32 - 1)],
        *[("tokenizer.ggml.model: string length", "Q", v, "tokenizer.ggml.model")
          for v in (2**31, 2**40, 2**63, 2**64 - 1)],
        *[("tokenizer.ggml.tokens: element type", "I", v, "tokenizer.ggml.tokens") for v in (9, 13, 2**32 - 1)],
        *[("tokenizer.ggml.tokens: count", "Q", v, "tokenizer.ggml.tokens", "entry")
          for v in (0, 2**31, 2**61, 2**63, 2**64 - 1)],
        *[(TENSOR + ": name length", "Q", v, "dimensions") for v in (0, 2**31, 2**63, 2**64 - 1)],
        *[(TENSOR + ": rank", "I", v, TENSOR) for v in (0, 1, 3, 5, 2**31, 2**32 - 1)],
        *[(f"{TENSOR}: dim {i}", "Q", v, TENSOR) for i in (0, 1)
          for v in (0, 1, 31, 64, 2**31, 2**32, 2**60, 2**63, 2**64 - 1)],
        *[(TENSOR + ": type", "I", v, TENSOR) for v in (3, 10, 14, 24, 29, 31, 999, 2**32 - 1)],
        *[(TENSOR + ": offset", "Q", v, TENSOR) for v in (1, 4, 2**20, 2**31, 2**63, 2**64 - 32, 2**64 - 1)]]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie[0]} = {lie[2]}")
def test_lying_header(small, folder, lie):
    data, parsed = small
    field, code, value, *names = lie
    path = folder / "lying.gguf"
    raw, at = struct.pack("<" + code, value), parsed.at[field]
    path.write_bytes(data[:at] + raw + data[at + len(raw):])
    refuse_model(path, *([value, hex(value)] if code != "4s" else []), *names)


def test_dims_whose_product_overflows(small, folder):
    data, parsed = small
    path = folder / "overflow.gguf"
    at = parsed.at[TENSOR + ": dim 0"]
    path.write_bytes(data[:at] + struct.pack("<QQ", 2**32, 2**32) + data[at + 16:])
    refuse_model(path, TENSOR)


# Metadata that says something else than the tensors do, or nothing that makes sense. None: left out.
METADATA = [("general.architecture", "mamba", "mamba"), ("general.architecture", None), ("general.architecture", 7),
            *[("general.alignment", v) for v in (0, 3, -1)],
            *[("llama.embedding_length", v, "token_embd", "llama.rope.dimension_count")
              for v in (None, 0, 32, 65, 2**32 - 1, "64")],
            *[("llama.block_count", v, "blk.2") for v in (None, 0, 3, 2**32 - 1)],
            *[("llama.attention.head_count", v, "attn_", "3 heads") for v in (None, 0, 3, 2**32 - 1)],
            *[("llama.attention.head_count_kv", v, "attn_", "3 KV heads") for v in (0, 3, 2**32 - 1)],
            *[("llama.feed_forward_length", v, "ffn_") for v in (None, 0, 128, 2**32 - 1)],
            *[("llama.context_length", v) for v in (0,)],
            *[("llama.rope.dimension_count", v, "7 rotated") for v in (7, 18, 2**32 - 1)],
            *[("llama.rope.freq_base", v) for v in (0.0, -1.0, float("nan"), float("inf"))],
            *[("llama.rope.scaling.factor", v) for v in (0.0, -1.0, float("nan"))],
            ("llama.rope.scaling.type", "unheard-of", "unheard-of"),
            *[("llama.attention.layer_norm_rms_epsilon", v) for v in (None, -1.0, float("nan"))],
            ("tokenizer.ggml.model", "unheard-of", "unheard-of"), ("tokenizer.ggml.tokens", None),
            ("tokenizer.ggml.tokens", ["a", "b"], "token_embd", "2 tokens"),
            ("tokenizer.ggml.merges", None), ("tokenizer.ggml.bos_token_id", 99999)]


@pytest.mark.parametrize("change", METADATA, ids=lambda c: f"{c[0]} = {c[1]}")
def test_lying_metadata(folder, change):
    key, value, *names = change
    metadata, tensors = random_model.build(linear_factor=4)
    metadata.pop(key, None)
    if value is not None:
        metadata[key] = value
    path = folder / "metadata.gguf"
    random_model.gguf.write(path, metadata, tensors)
    refuse_model(path, key, *names)


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.1.attn_norm.weight",
                                  "blk.1.ffn_up.weight"])
def test_missing_tensor(folder, name):
    metadata, tensors = random_model.build()
    path = folder / "missing.gguf"
    random_model.gguf.write(path, metadata, [t for t in tensors if t[0] != name])
    refuse_model(path, name)


def test_prompt_longer_than_the_context(make, folder):
    path, _ = make()
    for rest in ([], ["--dump-logits", folder / "logits.npy"]):
        refuse([40, 16], "--model", path, "--tokens", comma([1] * 40), "--context", 16, *rest)
    refuse([16, "context"], "--model", path, "--prompt", "the dog ran " * 20, "--context", 16)


@pytest.mark.parametrize("text", [b"\xff", b"ab\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80abc"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["--prompt", "--tokenize"])
def test_invalid_utf8(make, option, family, text):
    refuse(["utf-8", "utf8"], "--model", make(family=family)[0], option, text)


@pytest.mark.parametrize("tokens, name", [("1,99999", "99999"), ("317", "317"), ("-1", "-1"), ("1,x", '"x"'),
                                          ("1,,2", '""'), *[(str(n), str(n)) for n in (2**32 + 1, 10**20 - 1)]])
def test_bad_tokens(make, tokens, name):
    refuse([name], "--model", make()[0], f"--tokens={tokens}", "-n", 1)


@pytest.mark.parametrize("device", ["foo:bar", "nonsense", "emu:/nonexistent.sock"])
def test_bad_device(make, device):
    refuse([device.removeprefix("emu:")], "--model", make()[0], "--tokens", "1,2", "-n", 1, "--device", device)


def test_logits_to_a_folder_that_is_not(make):
    out = "/nonexistent/logits.npy"
    refuse([out], "--model", make()[0], "--tokens", "1,2", "--dump-logits", out)


def test_batches_give_what_single_runs_give(shipped, folder):
    """More prompts than places, of different lengths and ends: each text equals that of its own run."""
    prompts = ["Once upon a time", "The dog", "A little girl named Lily went to the", "One day", "The sun was", "He"]
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts) + "\n")
    model = shipped[0]
    for parallel in ("1", "4"):
        texts = {}
        for line in succeed("--model", model, "--prompts", path, "--parallel", parallel, "-n", "30").decode().splitlines():
            number, _, text = line.partition("] ")
            texts[int(number[1:])] = text
        for k, prompt in enumerate(prompts):
            alone = succeed("--model", model, "--prompt", prompt, "-n", "30").decode()
            assert prompt + texts[k + 1] == alone.rstrip("\n")


def test_batch_options(shipped, folder):
    model = shipped[0]
    refuse(["no line"], "--model", model, "--prompts", "/dev/null")
    refuse(["missing.txt"], "--model", model, "--prompts", folder / "missing.txt")
    refuse(["--prompts"], "--model", model, "--prompts", "/dev/null", "--prompt", "x")
