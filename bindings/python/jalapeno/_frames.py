"""Names in Python frames: what local names hold, whether anybody reads it later, and letting a name stand for another value.

Knows frames, bytecode and syntax trees of Python, and which values it carries (Carried, numbers, strings); not what those values are,
nor what the chip does with them.
"""
from __future__ import annotations

import ast
import ctypes
import dis
import functools
import numbers
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

Path = tuple  # of a value in a frame: a local name, then (".", attribute), ("[", key) or ("len",)

# What is made of these modules' classes is looked into by nobody but themselves.
_OWN = {f"{__package__}.{m}" for m in ("_frames", "_recording", "_scalars", "_tiles", "_control", "language")}


class Carried:
    """A value of the chip that a local name may hold: a loop or condition carries it."""

    __slots__ = ()


# None of the following may be a function inside another that calls itself: such a closure is a cycle, which would keep tiles
# and their memory until Python's garbage collector runs.
def _names(frame: FrameType) -> dict[Path, Any]:
    """The values, numbers, strings and Nones that local names of a frame hold, also inside lists, tuples, dicts and objects."""
    out: dict[Path, Any] = {}
    local = frame.f_locals
    for name, value in list(local.items()):
        _collect(out, (name,), value)
    if type(local) is dict:
        local.clear()  # CPython keeps this copy with the frame, and with it tiles that are gone
    return out


def _collect(out: dict[Path, Any], path: Path, value: Any) -> None:
    if value is None or isinstance(value, (Carried, numbers.Number, str)):
        out[path] = value
    elif len(path) > 4 or isinstance(value, (type, ModuleType, FunctionType)) or type(value).__module__ in _OWN:
        return
    elif isinstance(value, (list, tuple, dict)):
        out[path + (("len",),)] = len(value)
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            _collect(out, path + (("[", k),), v)
    elif hasattr(value, "__dict__"):
        for k, v in vars(value).items():
            _collect(out, path + ((".", k),), v)


def _rebind(frame: FrameType, path: Path, value: Any) -> None:
    """Lets the name (or the element of what it holds) stand for another value."""
    local = frame.f_locals
    local[path[0]] = _put(local[path[0]], path[1:], value)
    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    if type(local) is dict:
        local.clear()


def _put(holder: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    how, key = path[0]
    if how == ".":
        setattr(holder, key, _put(getattr(holder, key), path[1:], value))
    elif isinstance(holder, tuple):
        parts = [_put(v, path[1:], value) if k == key else v for k, v in enumerate(holder)]
        return type(holder)(*parts) if hasattr(holder, "_fields") else tuple(parts)
    else:
        holder[key] = _put(holder[key], path[1:], value)
    return holder


def _text(path: Path) -> str:
    return path[0] + "".join(f".{k[1]}" if k[0] == "." else f"[{k[1]!r}]" if k[0] == "[" else "(len)" for k in path[1:])


@functools.lru_cache(maxsize=256)
def _flow(code: CodeType) -> dict[int, tuple[dis.Instruction, list[int]]]:
    """Instructions by offset, each with what may run after it."""
    instructions = list(dis.get_instructions(code))
    handlers = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    out: dict[int, tuple[dis.Instruction, list[int]]] = {}
    for i, following in zip(instructions, [*instructions[1:], None]):
        after = []
        if following is not None and not i.opname.startswith(("RETURN", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")):
            after.append(following.offset)
        if i.opcode in dis.hasjrel or i.opcode in dis.hasjabs:
            after.append(i.argval)
        if i.opname == "BEFORE_WITH" and following is not None:
            # The chip may skip the body; for Python that is the way of an exception that the with statement swallows.
            after += [h.target for h in handlers if h.start <= following.offset < h.end]
        out[i.offset] = i, after
    return out


def _live(frame: FrameType, name: str) -> bool:
    """Whether anybody may read what a local name holds now: a later statement, or the next iteration of a loop."""
    code = frame.f_code
    if name in code.co_cellvars or name in code.co_freevars:
        return True
    flow, seen, open_ = _flow(code), set(), [frame.f_lasti]
    while open_:
        at = open_.pop()
        if at in seen or at not in flow:
            continue
        seen.add(at)
        i, after = flow[at]
        if i.opcode in dis.haslocal and i.argval == name:
            if i.opname.startswith("LOAD"):
                return True
        else:
            open_ += after
    return False


@functools.lru_cache(maxsize=8)
def _with_statements(source: str) -> dict[int, ast.With]:
    try:
        return {n.lineno: n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.With)}
    except SyntaxError:
        return {}


def _leaves(source: str, line: int) -> tuple[str, int] | None:
    """The statement that leaves the with statement at this line early, and its own line."""
    statement = _with_statements(source).get(line)
    return None if statement is None else _leaving(statement, False)


def _leaving(node: ast.AST, in_loop: bool) -> tuple[str, int] | None:
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
        return None
    if isinstance(node, ast.Return) or isinstance(node, (ast.Break, ast.Continue)) and not in_loop:
        return type(node).__name__.lower(), node.lineno
    inside = in_loop or isinstance(node, (ast.For, ast.While))
    return next((f for n in ast.iter_child_nodes(node) if (f := _leaving(n, inside)) is not None), None)
