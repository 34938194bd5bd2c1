"""libjalapeno in Python: devices, arrays, kernels and language models on the Jalapeno accelerator.

>>> import numpy as np, jalapeno as jal
>>> x = jal.array(np.ones((4, 8), np.float32))
>>> (x @ x.T).numpy()[0, 0]
8.0
"""
from ._core import (Capture, Communicator, Device, Elapsed, ErrorRecord, Event, Graph, Kernel, Memory, Module, PreparedLaunch, Stream,
                    Timeline, current_stream, devices, launcher_rank, library_kernel)
from .errors import (BusyError, CaptureError, CompileError, DependencyError, DeviceError, Error, ForkedError,
                     IllegalStateError, ImageError, InvalidHandleError, InvalidValueError, KernelError, NotFoundError,
                     OutOfMemoryError, PeerError, UnsupportedError, WaitTimeout)
from .dtypes import DType, bfloat16, bool_, dtype, float8_e4m3, float8_e5m2, float16, float32, int8, int32, int64, uint8
from .array import (Array, arange, array, asarray, default_device, empty, empty_like, from_dlpack, full, ones,
                    set_default_device, zeros, zeros_like)
from .kernel import Compiled, JitKernel, kernel
from .report import Report, measure
from .autotune import Choice, Trial, Tuned, autotune
from .collectives import group
from .language import cdiv
from . import aio, language, llm, ops

__all__ = ["aio", "arange", "Array", "array", "asarray", "autotune", "bfloat16", "bool_", "BusyError", "Capture",
           "CaptureError", "cdiv", "Choice", "Communicator", "Compiled", "CompileError", "current_stream", "default_device",
           "DependencyError", "Device", "DeviceError", "devices", "DType", "dtype", "Elapsed", "empty", "empty_like",
           "Error", "ErrorRecord", "Event", "float8_e4m3", "float8_e5m2", "float16", "float32", "ForkedError", "from_dlpack", "full", "Graph",
           "IllegalStateError", "ImageError", "int32", "int64", "int8", "InvalidHandleError", "InvalidValueError",
           "group", "JitKernel", "Kernel", "kernel", "KernelError", "language", "launcher_rank", "library_kernel", "llm", "measure", "Memory", "Module",
           "NotFoundError", "ones", "ops", "OutOfMemoryError", "PeerError", "PreparedLaunch", "Report", "set_default_device", "Stream", "Timeline",
           "Trial", "Tuned", "uint8", "UnsupportedError", "WaitTimeout", "zeros", "zeros_like"]
