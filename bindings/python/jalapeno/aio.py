"""Awaiting the device from asyncio, through an eventfd the library signals: no thread waits.

    await stream                   # all that is enqueued on it by now is done
    await jal.aio.reached(event)   # what was enqueued before event.record() is done

Both raise what the work failed with. Cancelling leaves the work alone. An event that is waited for takes one of the device's
queues meanwhile (BusyError when none is left).
"""
from __future__ import annotations

import asyncio
import os
from typing import Any, Generator

from ._core import Event, Stream


async def _notified(stream: Stream) -> None:
    """Until the stream has passed this point, done or failed."""
    loop = asyncio.get_running_loop()
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # type: ignore[attr-defined]
    done = loop.create_future()

    def signalled(_keep: Stream = stream) -> None:
        loop.remove_reader(fd)
        os.close(fd)
        if not done.done():
            done.set_result(None)

    try:
        stream.notify(fd)
    except BaseException:
        os.close(fd)
        raise
    # The descriptor belongs to the library until it has signalled, also when nobody waits any more.
    loop.add_reader(fd, signalled)
    await done


async def finished(stream: Stream) -> None:
    """Waits for what is enqueued on the stream by now."""
    await _notified(stream)
    stream.query()


async def reached(event: Event) -> None:
    """Waits for an event: on a stream of its own, so that later work of the event's stream is not waited for."""
    if event.query():
        return
    side = Stream(event.device)
    side.wait(event)
    await _notified(side)
    event.query()


def _await_stream(self: Stream) -> Generator[Any, None, None]:
    return finished(self).__await__()


def _await_event(self: Event) -> Generator[Any, None, None]:
    return reached(self).__await__()


setattr(Stream, "__await__", _await_stream)
setattr(Event, "__await__", _await_event)
