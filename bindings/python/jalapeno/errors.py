"""What can go wrong, as exceptions.

Every exception of the library is an :class:`Error` with ``code`` (a jalError_t), ``name``, ``detail`` and, when a stream
failed, ``record``: what the chip reported (kernel, source line, grid position, address, nearest allocation).
"""
from __future__ import annotations

import builtins

from ._core import ErrorRecord


class Error(RuntimeError):
    """A call that failed. ``code`` and ``name`` are the C API's; ``record`` is an ErrorRecord or None."""

    def __init__(self, code: int, name: str, detail: str, record: ErrorRecord | None = None):
        self.code, self.name, self.detail, self.record = code, name, detail, record
        super().__init__(f"{name}: {detail}" if record is None else f"{name}: {detail}\n{describe(record)}")

    def __reduce__(self) -> tuple:
        """A copy in another process has the text; the record stays here."""
        return type(self), (self.code, self.name, str(self).removeprefix(f"{self.name}: "))


class InvalidValueError(Error, ValueError):
    """An argument that is not allowed; the message names it and what was expected."""


class InvalidHandleError(Error):
    """An object that was closed, freed, or belongs to a closed device."""


class IllegalStateError(Error):
    """A call that the object's state does not allow now."""


class OutOfMemoryError(Error, MemoryError):
    """Device or pinned memory is exhausted."""


class DeviceError(Error):
    """No device, one that cannot be opened or speaks another version, or one that is lost."""


class BusyError(Error):
    """Held by somebody else, or nothing left of it (queues)."""


class ImageError(Error):
    """A module that is not one, or breaks a rule of the verifier."""


class NotFoundError(Error, LookupError):
    """No kernel (or other thing) of that name."""


class UnsupportedError(Error, NotImplementedError):
    """Not supported by this device or version."""


class CaptureError(Error):
    """Something that cannot be recorded in a graph."""


class WaitTimeout(Error, builtins.TimeoutError):
    """The time is over; the work goes on and the wait may be repeated."""


class KernelError(Error):
    """A kernel failed. ``record`` tells where."""


class DependencyError(Error):
    """Work that was waited for failed."""


class ForkedError(Error):
    """The process was forked: devices stay with the parent."""


class PeerError(Error):
    """A collective ended on every rank: one is lost, late, aborted, or called for something else. Communicator.error
    says which."""


class CompileError(ValueError):
    """A kernel in Python that cannot be built. ``file`` and ``line`` are where."""

    def __init__(self, message: str, file: str = "", line: int = 0):
        self.file, self.line = file, line
        super().__init__(f"{file}:{line}: {message}" if file else message)


_CLASSES: dict[int, type[Error]] = {
    1: InvalidValueError, 2: OutOfMemoryError, 100: DeviceError, 101: DeviceError, 200: ImageError, 214: KernelError,
    400: InvalidHandleError, 401: IllegalStateError, 500: NotFoundError, 700: KernelError, 702: KernelError,
    710: KernelError, 715: KernelError, 716: InvalidValueError, 719: KernelError, 801: UnsupportedError,
    900: CaptureError, 901: CaptureError, 2000: OutOfMemoryError, 2001: DeviceError, 2002: WaitTimeout,
    2003: DependencyError, 2004: DeviceError, 2005: ForkedError, 2006: BusyError, 2010: KernelError, 2011: KernelError,
    2012: KernelError,
    2013: KernelError, 2014: KernelError, 2015: KernelError, 2016: KernelError,
    2020: PeerError, 2021: PeerError, 2022: PeerError, 2023: PeerError, 2024: DeviceError,
}


def from_code(code: int, name: str, detail: str, record: ErrorRecord | None) -> Error:
    """The exception for a jalError_t."""
    return _CLASSES.get(code, Error)(code, name, detail, record)


def describe(record: ErrorRecord) -> str:
    """The record as lines of text, without what is not known."""
    lines = []
    if record.kernel:
        where = f" at {record.source_file}:{record.source_line}" if record.source_file else ""
        instruction = "" if record.instruction is None else f", instruction {record.instruction}"
        lines.append(f"  kernel {record.kernel}{where}{instruction}, grid position {record.grid_position}, core {record.core}")
    elif record.operation:
        lines.append(f"  operation {record.operation}, number {record.sequence} of its stream")
    if record.address or record.bytes:
        lines.append(f"  {record.access or 'access'} of {record.bytes} bytes at {record.address:#x}")
    if record.allocation:
        lines.append(f"  nearest allocation: {record.allocation_bytes} bytes at {record.allocation:#x}, "
                     f"the address is at {record.allocation_offset:+d}")
    if record.call_site:
        lines.append(f"  launched at {record.call_site}")
    return "\n".join(lines)
