"""Language models: any Llama-architecture GGUF file in F32, F16, BF16, Q8_0, Q4_0 or MXFP4, run by the code of samples/llm."""
from __future__ import annotations

import codecs
import operator
import os
import threading
from typing import Callable, Iterator, Sequence

import numpy as np

from . import _core
from ._core import Device
from .array import default_device


class Model:
    """A model on a device. Its weights and cache are freed with it.

    A model holds one sequence at a time: a new generate() or logits() begins another, and a generator that was begun before
    raises RuntimeError. Calls from several threads wait for one another. Waiting releases the GIL.
    """

    def __init__(self, core: _core.LanguageModel):
        self._core = core
        self._turn = 0
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike, device: Device | None = None, *, context: int = 0,
             progress: Callable[[int, int], None] | None = None, kv: str | None = None) -> Model:
        """Reads a GGUF file. context: tokens the cache holds (0: the model's, at most 4096). progress(done, all) is told the bytes.
        kv: type of the cache, f32, bf16, f16 or q8_0 (None: f32 or f16 as the weights are, otherwise bf16).
        Blocks without the GIL; Ctrl-C ends it, and so does an exception in progress. Raises InvalidValueError naming the file and
        the field that is wrong, OutOfMemoryError."""
        if not 0 <= operator.index(context) < 2**31:
            raise ValueError(f"context is {context}, expected at least 0")
        return cls(_core.LanguageModel(device or default_device(), os.fspath(path), context, 1, progress, kv or ""))

    @property
    def device(self) -> Device:
        """Where it runs."""
        return self._core.device

    @property
    def parameters(self) -> dict[str, int]:
        """Sizes: layers, width, ffn, heads, kv_heads, head, vocabulary, context."""
        return self._core.parameters

    @property
    def weight_bytes(self) -> int:
        """Of the weights on the device."""
        return self._core.weight_bytes

    def encode(self, text: str) -> list[int]:
        """Token ids, with the beginning-of-text token in front when the model wants one. UnicodeEncodeError for lone surrogates."""
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}, expected a str")
        text.encode()
        return self._core.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._core.decode(t) for t in self._ids(tokens)).decode("utf-8", "replace")

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        if isinstance(tokens, str):
            raise TypeError("tokens is a str, expected ints; encode() makes them")
        ids = [operator.index(t) for t in tokens]
        vocabulary = self.parameters["vocabulary"]
        for t in ids:
            if not 0 <= t < vocabulary:
                raise ValueError(f"token {t}, expected 0 to {vocabulary - 1}")
        return ids

    def tokens(self, prompt: str | Sequence[int], max_tokens: int = 128, *, temperature: float = 0.0, top_k: int = 40,
               top_p: float = 1.0, seed: int = 0, ignore_end: bool = False) -> Iterator[int]:
        """The ids of the tokens that follow the prompt, one by one, until the text ends, max_tokens, or the context is full. The
        arguments are checked at the call; the work begins with the first token that is asked for, and each blocks without the
        GIL."""
        if max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}, expected at least 0")
        ids = self.encode(prompt) if isinstance(prompt, str) else self._ids(prompt)
        if not 1 <= len(ids) <= self.parameters["context"]:
            raise ValueError(f"a prompt of {len(ids)} tokens, expected 1 to {self.parameters['context']}")
        _check_sampling(temperature, top_k, top_p, seed)
        return self._tokens(ids, max_tokens, (temperature, top_k, top_p, seed), ignore_end)

    def _tokens(self, ids: list[int], count: int, sampling: tuple, ignore_end: bool) -> Iterator[int]:
        turn = 0
        for made in range(count):
            with self._lock:
                if made == 0:
                    self._turn += 1
                    turn = self._turn
                    self._core.prefill(ids)
                    token = self._core.first(*sampling)
                elif turn != self._turn:
                    raise RuntimeError("another sequence was begun on this model; a model holds one at a time")
                elif self._core.position() >= self.parameters["context"]:
                    return
                else:
                    token = self._core.step(*sampling)
            if self._core.ends_text(token) and not ignore_end:
                return
            yield token

    def generate(self, prompt: str | Sequence[int], max_tokens: int = 128, *, temperature: float = 0.0, top_k: int = 40,
                 top_p: float = 1.0, seed: int = 0, ignore_end: bool = False) -> Iterator[str]:
        """The text that follows the prompt, in pieces as they are made. temperature 0: always the most likely token; otherwise
        samples among the top_k most likely that together have probability top_p, the same for the same seed."""
        ids = self.tokens(prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, ignore_end=ignore_end)

        def pieces() -> Iterator[str]:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for t in ids:
                text = decoder.decode(self._core.decode(t))
                if text:
                    yield text
            rest = decoder.decode(b"", True)
            if rest:
                yield rest
        return pieces()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits behind every position, float32 [len(tokens), vocabulary]. Begins another sequence. Blocks without the GIL."""
        ids = self._ids(tokens)
        if not 1 <= len(ids) <= self.parameters["context"]:
            raise ValueError(f"logits of {len(ids)} tokens, expected 1 to {self.parameters['context']}")
        with self._lock:
            self._turn += 1
            return self._core.logits(ids)

    def __repr__(self) -> str:
        p = self.parameters
        return f"<jalapeno.llm.Model {p['layers']} layers of {p['width']}, {self.weight_bytes:,} bytes, on {self.device.uri}>"


def _check_sampling(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, expected at least 0")
    if not 1 <= operator.index(top_k) <= 1024:
        raise ValueError(f"top_k is {top_k}, expected 1 to 1024")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected more than 0, at most 1")
    if not -2**63 <= operator.index(seed) < 2**63:
        raise ValueError(f"seed is {seed}, expected an integer of 64 bits")


__all__ = ["Model"]
