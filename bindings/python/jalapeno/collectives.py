"""Collectives between chips. The operations are methods of Communicator; here is what goes around them."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from . import _core


@contextmanager
def group() -> Iterator[None]:
    """Collective calls of this thread inside it are issued together when it ends: one thread can drive several ranks,
    and sends and receives cannot block each other. Arrays used inside must live until it ends, and
    communicators made inside are of use then. An exception inside forgets what was collected."""
    _core.group_start()
    try:
        yield
    except BaseException:
        _core.group_cancel()
        raise
    _core.group_end()
