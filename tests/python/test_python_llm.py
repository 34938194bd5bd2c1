"""jalapeno.llm against the jalapeno-llm program, which test_llm.py checks against the reference, and what it refuses.

JALAPENO_LLM is the program's path; without it the one of the build the package comes from.
"""
import gc
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import jalapeno as jal

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import llama_reference as reference  # noqa: E402
import random_model  # noqa: E402

SHIPPED = HERE.parents[1] / "samples" / "llm" / "model" / "storyteller-3m-bf16.gguf"
BUILT = pathlib.Path(jal._core.__file__).parents[2] / "bin" / "jalapeno-llm"
PROGRAM = os.environ.get("JALAPENO_LLM") or (str(BUILT) if BUILT.exists() else "")
program = pytest.mark.skipif(not PROGRAM, reason="JALAPENO_LLM, the path of jalapeno-llm, is not set")


def run(*arguments):
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, timeout=200, env={**os.environ, "JAL_LOG": "off"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    p = tmp_path_factory.mktemp("llm") / "random.gguf"
    random_model.write(p, seed=6, dtype="F32")
    return p


@pytest.fixture(scope="module")
def model(path, device):
    return jal.llm.Model.load(path, device, context=128)


@pytest.fixture(scope="module")
def shipped(device):
    return jal.llm.Model.load(SHIPPED, device)


@program
@pytest.mark.parametrize("prompt", ["Once upon a time", "The dog"])
def test_greedy_text_equals_the_programs(shipped, prompt):
    expected = run("--model", SHIPPED, "--prompt", prompt, "-n", 60, "--temperature", 0).decode().rstrip("\n")
    pieces = list(shipped.generate(prompt, 60))
    assert len(pieces) > 10 and all(pieces)
    assert (prompt + "".join(pieces)).rstrip("\n") == expected


@program
def test_sampled_text_equals_the_programs(shipped):
    options = dict(temperature=0.9, top_k=30, top_p=0.95, seed=11)
    expected = run("--model", SHIPPED, "--prompt", "One day", "-n", 40, "--temperature", 0.9, "--top-k", 30, "--top-p", 0.95,
                   "--seed", 11,
                   "--ignore-end").decode().rstrip("\n")
    assert ("One day" + "".join(shipped.generate("One day", 40, ignore_end=True, **options))).rstrip("\n") == expected


@program
def test_logits_equal_the_programs(model, path, tmp_path):
    tokens = np.random.default_rng(3).integers(0, 250, 50)
    run("--model", path, "--tokens", ",".join(map(str, tokens)), "--dump-logits", tmp_path / "logits.npy")
    logits = model.logits(tokens)
    assert logits.dtype == np.float32 and logits.shape == (50, model.parameters["vocabulary"])
    np.testing.assert_array_equal(logits, np.load(tmp_path / "logits.npy"))


def test_logits_equal_the_reference(model, path):
    tokens = [1, 5, 9, 200, 7]
    expected = reference.Model(path).logits(tokens)
    assert np.abs(model.logits(tokens) - expected).max() <= 1e-3 * np.ptp(expected)


def test_tokens_are_the_most_likely_ones(model):
    prompt = [3, 14, 15, 92, 65]
    made = list(model.tokens(prompt, 12, ignore_end=True))
    logits = model.logits(prompt + made)
    assert logits[len(prompt) - 1:-1].argmax(1).tolist() == made


@pytest.mark.parametrize("text", ["", "a", "Once upon a time there was a little dog.", " two  spaces\nand a line",
                                  "naïve café – “quoted” 世界 🎉"])
def test_encode_and_decode(shipped, text):
    ids = shipped.encode(text)
    assert all(isinstance(t, int) and 0 <= t < shipped.parameters["vocabulary"] for t in ids)
    assert shipped.decode(ids).removeprefix("<s>").removeprefix(" ") == text.removeprefix(" ")
    assert ids == reference.encode(reference.Gguf(SHIPPED).metadata, text)


def test_pieces_are_whole_characters(model, monkeypatch):
    """Bytes of one character that come with several tokens make one piece."""
    ids = model.encode("é世")
    monkeypatch.setattr(model, "tokens", lambda *_, **__: iter(ids))
    assert "".join(model.generate("x")) == "é世"
    assert all("\ufffd" not in piece for piece in model.generate("x"))


def test_the_seed_decides(model):
    a, b, c = (list(model.tokens("the dog", 30, temperature=1.0, seed=s, ignore_end=True)) for s in (7, 7, 8))
    assert a == b != c and len(a) == 30


def test_greedy_ignores_the_seed(model):
    assert list(model.tokens([1, 2], 8, seed=1)) == list(model.tokens([1, 2], 8, seed=2))


def test_a_second_sequence_ends_the_first(model, refuses):
    first = model.tokens([1, 2, 3], 10, ignore_end=True)
    kept = [next(first)]
    second = model.tokens([4, 5], 10, ignore_end=True)
    kept.append(next(first))  # nothing was begun yet
    next(second)
    with refuses(RuntimeError, "another sequence was begun on this model; a model holds one at a time"):
        next(first)
    assert len(list(second)) == 9
    third = model.tokens([1, 2, 3], 10, ignore_end=True)
    next(third)
    model.logits([1])
    with refuses(RuntimeError, "another sequence was begun"):
        next(third)
    assert list(model.tokens([1, 2, 3], 2, ignore_end=True)) == kept


def test_ends(model):
    assert list(model.tokens([1, 2], 0)) == [] and "".join(model.generate([1, 2], 0)) == ""
    context = model.parameters["context"]
    assert context == 128
    assert len(list(model.tokens([1] * (context - 4), 100, ignore_end=True))) == 5, "until the cache is full"
    assert len(list(model.tokens([1] * context, 100, ignore_end=True))) == 1


def test_bad_arguments(model, refuses):
    for call, kind, text in (
            (lambda: model.generate("a", -1), ValueError, "max_tokens is -1, expected at least 0"),
            (lambda: model.generate("a", temperature=-1), ValueError, "temperature is -1, expected at least 0"),
            (lambda: model.generate("a", temperature=float("nan")), ValueError, "temperature is nan, expected at least 0"),
            (lambda: model.generate("a", top_k=0), ValueError, "top_k is 0, expected 1 to 1024"),
            (lambda: model.generate("a", top_k=1025), ValueError, "top_k is 1025, expected 1 to 1024"),
            (lambda: model.generate("a", top_k=1.5), TypeError, "'float' object cannot be interpreted as an integer"),
            (lambda: model.generate("a", top_p=0), ValueError, "top_p is 0, expected more than 0, at most 1"),
            (lambda: model.generate("a", top_p=float("nan")), ValueError, "top_p is nan, expected more than 0, at most 1"),
            (lambda: model.generate("a", seed=2**63), ValueError, "seed is 9223372036854775808, expected an integer of 64 bits"),
            (lambda: model.generate([]), ValueError, "a prompt of 0 tokens, expected 1 to 128"),
            (lambda: model.generate([1] * 129), ValueError, "a prompt of 129 tokens, expected 1 to 128"),
            (lambda: model.tokens([317]), ValueError, "token 317, expected 0 to 316"),
            (lambda: model.logits([2**40]), ValueError, "token 1099511627776, expected 0 to 316"),
            (lambda: model.logits([-1]), ValueError, "token -1, expected 0 to 316"),
            (lambda: model.logits([]), ValueError, "logits of 0 tokens, expected 1 to 128"),
            (lambda: model.logits([1] * 129), ValueError, "logits of 129 tokens, expected 1 to 128"),
            (lambda: model.decode([999]), ValueError, "token 999, expected 0 to 316"),
            (lambda: model.decode("abc"), TypeError, "tokens is a str, expected ints; encode() makes them"),
            (lambda: model.encode(5), TypeError, "text is a int, expected a str"),
            (lambda: model.encode("\ud800"), UnicodeEncodeError, "surrogates not allowed")):
        with refuses(kind, text):
            call()
    assert len(model.logits([1, 2])) == 2


def test_bad_files(device, path, tmp_path, refuses):
    with refuses(jal.InvalidValueError, "/nonexistent.gguf: No such file or directory"):
        jal.llm.Model.load("/nonexistent.gguf", device)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:5000])
    with refuses(jal.InvalidValueError, f"{damaged}: ends at byte 5000 inside tokenizer.ggml."):
        jal.llm.Model.load(damaged, device)
    damaged.write_bytes(b"GGML" + path.read_bytes()[4:])
    with refuses(jal.InvalidValueError, f"{damaged}: "):
        jal.llm.Model.load(damaged, device)
    for context, text in ((-1, "context is -1, expected at least 0"), (2**40, "context is 1099511627776, expected at least 0"),
                          (513, "513: the model was trained for 512")):
        with refuses(ValueError, text):
            jal.llm.Model.load(path, device, context=context)
    with refuses(TypeError, "expected str, bytes or os.PathLike object, not int"):
        jal.llm.Model.load(5, device)


def test_progress(device, path, refuses):
    seen = []
    jal.llm.Model.load(path, device, progress=lambda done, all_: seen.append((done, all_)))
    assert seen and seen[-1][0] == seen[-1][1] > 0 and seen == sorted(seen)
    with pytest.raises(ZeroDivisionError):
        jal.llm.Model.load(path, device, progress=lambda done, all_: 1 / 0)
    with refuses(TypeError, "'int' object is not callable"):
        jal.llm.Model.load(path, device, progress=5)


def test_what_it_tells(model, device, path):
    p = model.parameters
    assert (p["layers"], p["width"], p["heads"], p["kv_heads"], p["head"], p["ffn"]) == (2, 64, 4, 2, 16, 96)
    assert model.device is device and model.weight_bytes > 100_000
    assert repr(model) == f"<jalapeno.llm.Model 2 layers of 64, {model.weight_bytes:,} bytes, on {device.uri}>"


def test_two_models_on_one_device_and_threads(model, path, device):
    """Each gives what it gives alone, also at the same time."""
    other = jal.llm.Model.load(path, device, context=64)
    alone = {m: list(m.tokens([5, 6, 7], 20, ignore_end=True)) for m in (model, other)}
    assert alone[model] == alone[other]
    a, b = model.tokens([5, 6, 7], 20, ignore_end=True), other.tokens([5, 6, 7], 20, ignore_end=True)
    assert [t for pair in zip(a, b) for t in pair] == [t for t in alone[model] for _ in range(2)]
    seen = {}
    threads = [threading.Thread(target=lambda m=m: seen.update({m: list(m.tokens([5, 6, 7], 20,
                                                                                 ignore_end=True))})) for m in (model, other)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert seen == alone


def test_a_model_gives_its_memory_back(path):
    with jal.Device("emu:?hbm=256M") as d:
        jal.llm.Model.load(path, d, context=64).logits([1])
        gc.collect()
        d.synchronize()
        d.trim()
        baseline = d.memory_info()
        m = jal.llm.Model.load(path, d, context=64)
        m.logits([1])
        assert d.memory_info() != baseline
        del m
        gc.collect()
        d.synchronize()
        d.trim()
        assert d.memory_info() == baseline


def test_closed_device(path, refuses):
    d = jal.Device("emu:?hbm=256M")
    m = jal.llm.Model.load(path, d, context=64)
    running = m.tokens([1, 2], 10, ignore_end=True)
    next(running)
    d.close()
    for call in (lambda: next(running), lambda: next(m.tokens([1])), lambda: next(m.generate("a")), lambda: m.logits([1])):
        with refuses(jal.InvalidHandleError, "the model's device was closed"):
            call()
    with refuses(jal.InvalidHandleError, "device emu:?hbm=256M was closed"):
        jal.llm.Model.load(path, d)
    assert m.decode(m.encode("the dog")).removeprefix("<s>").strip() == "the dog"
    assert "2 layers of 64" in repr(m)
