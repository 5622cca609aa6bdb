"""JSON from bytes, and values out of it, with errors a person can act on (light module).

Light: the warm path of a hook imports it, and there each import counts: ``import json`` alone costs as much as the bare interpreter,
nearly all of it for ``re``. So the C scanner that ``json`` is built on is called directly, and nothing else of the library is loaded.

A document comes from a runtime, an engine's store or a person: it may be truncated, huge, hostile or no JSON at all. Each of these ends in
an :class:`~oci_hpc_hooks.errors.InputError`; nothing else is raised.
"""

from __future__ import annotations

import posix
from _json import encode_basestring_ascii, make_encoder, make_scanner
from _stat import S_ISDIR, S_ISREG

from oci_hpc_hooks.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: No number that an engine writes is longer; ``int`` of a million digits takes minutes.
_LONGEST_NUMBER = 64


# ------------------------------------------------------------------------------------------------------------ bytes

def read_fd(fd: int, what: str, limit: int, expected: int = 0) -> bytes:
    """All bytes from *fd* to its end, at most *limit*; the rest is read and thrown away, so that no writer meets a closed pipe. As many
    as are *expected* are read at once.

    Raises InputError when there is more than *limit* or reading fails.
    """
    at_once = max(min(expected, limit) + 1, 1 << 12) if expected else 1 << 16
    chunks = []
    size = 0
    try:
        while True:
            chunk = posix.read(fd, at_once)
            if not chunk:
                break
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
    except OSError as error:
        raise InputError(f"{what} cannot be read: {posix.strerror(error.errno or 0)}") from None
    if size > limit:
        raise InputError(f"{what} is larger than the {_amount(limit)} that are read of it")
    return b"".join(chunks)


def write_fd(fd: int, data: bytes) -> None:
    """Writes all of *data*, in as many calls as it takes (write(2) may write less). Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view):]


def read_file(path: str, what: str, limit: int) -> bytes:
    """The bytes of the regular file *path*, at most *limit*. *what* names it in errors, the path is added.

    Never waits: a FIFO, a device, a socket and a directory are refused. Raises InputError.
    """
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingFile(f"{what} {path} does not exist") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be opened: {posix.strerror(error.errno or 0)}") from None
    except ValueError:  # a NUL or a character that no path can hold
        raise InputError(f"{what} {path!r} is not a path") from None
    try:
        status = posix.fstat(fd)
        if not S_ISREG(status.st_mode):
            found = "a directory" if S_ISDIR(status.st_mode) else "no regular file"
            raise InputError(f"{what} {path} is {found}")
        if status.st_size > limit:
            raise InputError(f"{what} {path} has {_amount(status.st_size)}, and at most {_amount(limit)} are read of it")
        return read_fd(fd, f"{what} {path}", limit, status.st_size)
    finally:
        posix.close(fd)


class MissingFile(InputError):
    """The file does not exist, which some callers expect."""


def _amount(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 and not size & 0xFFFFF else f"{size} bytes"


# ------------------------------------------------------------------------------------------------------------ text to values

def loads(data: bytes, what: str, limit: int, unique: bool = False) -> object:
    """The value of the JSON text *data* (RFC 8259, UTF-8 without a byte order mark). *what* names it in errors.

    Refused beyond the grammar: more than *limit* bytes, NaN and Infinity, numbers longer than any engine writes, half surrogate pairs,
    nesting deeper than the interpreter's recursion limit. Of equal keys the last one counts; with ``unique`` they are refused, for Go's
    decoder puts the values of equal keys together. Raises InputError.
    """
    if len(data) > limit:
        raise InputError(f"{what} has {_amount(len(data))}, and at most {_amount(limit)} are read of it")
    text = _decode(data, what)
    if not text.strip(_SPACE):
        raise InputError(f"{what} is empty: JSON was expected")
    start = len(text) - len(text.lstrip(_SPACE))
    value, end = _scan(text, start, what, unique)
    if text[end:].strip(_SPACE):
        end = len(text) - len(text[end:].lstrip(_SPACE))
        raise InputError(f"{what} is not usable JSON: {_place(text, end)}: the end was expected, found {_snippet(text, end)}")
    return value


def find(data: bytes, head: bytes, what: str) -> dict[str, object] | None:
    """The JSON object in *data* that begins with the bytes *head*, or None.

    For one record of a long list, without building the others: *head* must begin with ``{"`` and hold no escape, so that it cannot match
    inside a string. Raises InputError.
    """
    place = data.find(head)
    if place < 0:
        return None
    value, _ = _scan(_decode(data[place:], what), 0, what)
    return value if isinstance(value, dict) else None


_SPACE = " \t\n\r"


def _decode(data: bytes, what: str) -> str:
    if data.startswith((b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe")):
        raise InputError(f"{what} begins with a byte order mark: plain UTF-8 was expected")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def _scan(text: str, start: int, what: str, unique: bool = False) -> tuple[object, int]:
    try:
        value, end = _scan_once(text, start, _strict_scanner if unique else _scanner)
        if "\\ud" in text or "\\uD" in text:
            _refuse_half_pairs(value)
        return value, end
    except StopIteration as stop:  # no value begins here
        place = min(stop.value, len(text))
        problem = f"{_place(text, place)}: a value was expected, found {_snippet(text, place)}"
    except _Refused as error:
        problem = str(error)
    except UnicodeEncodeError:
        problem = "it holds half of a surrogate pair (\\ud800 to \\udfff)"
    except ValueError as error:  # json.JSONDecodeError
        place = min(getattr(error, "pos", 0), len(text))
        message = getattr(error, "msg", str(error))
        problem = f"{_place(text, place)}: {message[:1].lower()}{message[1:]}, found {_snippet(text, place)}"
    except RecursionError:
        problem = "it is nested too deeply"
    raise InputError(f"{what} is not usable JSON: {problem}")


def _scan_once(text: str, start: int, scanner: Any) -> tuple[object, int]:
    found: tuple[object, int]
    try:
        found = scanner(text, start)
    except SystemError:
        # Before Python 3.12 the scanner can only raise JSONDecodeError when someone else has imported it.
        import json.decoder  # noqa: F401

        found = scanner(text, start)
    return found


class _Refused(Exception):
    """A number that JSON does not know or that nobody needs."""


def _constant(text: str) -> object:
    raise _Refused(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise _Refused(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST_NUMBER else _LARGE
    if value in (_LARGE, -_LARGE):
        raise _Refused(f"the number {text[:20]}… is too large")
    return value


_LARGE = float("inf")


class _Context:
    """What ``json.JSONDecoder`` hands to its scanner (Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    object_pairs_hook: Any = None
    parse_float = staticmethod(_float)
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}


_scanner = make_scanner(_Context())  # type: ignore[arg-type]  # typeshed describes the result, not the argument


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("an object has two equal keys")
    return made


class _StrictContext(_Context):
    object_pairs_hook = staticmethod(_unique)


_strict_scanner = make_scanner(_StrictContext())  # type: ignore[arg-type]


def _refuse_half_pairs(value: object) -> None:
    """Raises UnicodeEncodeError: such a string could be neither printed nor used as a path."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict):
            todo += value
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _place(text: str, place: int) -> str:
    return f"line {text.count(chr(10), 0, place) + 1} column {place - text.rfind(chr(10), 0, place)}"


def _snippet(text: str, place: int) -> str:
    return ascii(text[place:place + 20]) if place < len(text) else "the end"


# ------------------------------------------------------------------------------------------------------------ values out of objects
#
# where is what stands before the key in an error: "config.json:" or "config.json: process". A key that is absent and one
# that is null are the same, as they are to the engines, which are written in Go.

def at(where: str, key: str | int) -> str:
    """The JSON path of *key* below *where*: ``config.json: process.args[0]``."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def wrong(value: object, path: str, expected: str) -> InputError:
    """The error that says what was expected at *path*, and what is there."""
    return InputError(f"{path}: {expected} was expected, found {_describe(value)}")


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:60] + "...")
    return "an object" if isinstance(value, dict) else "an array"


def as_mapping(value: object, path: str) -> dict[str, object]:
    """*value* if it is an object. Raises InputError."""
    if not isinstance(value, dict):
        raise wrong(value, path, "an object")
    return value


def as_string(value: object, path: str) -> str:
    """*value* if it is a string without NUL (none may stand in a path, an argument or a variable). Raises InputError."""
    if not isinstance(value, str) or "\0" in value:
        raise wrong(value, path, "a string without NUL" if isinstance(value, str) else "a string")
    return value


def string(source: dict[str, object], key: str, where: str, default: str | None = None) -> str:
    """The string at *key*; *default* when there is none. Raises InputError for anything else, or nothing without a default."""
    value = source.get(key)
    if value is None and default is not None:
        return default
    return as_string(value, at(where, key))


def integer(source: dict[str, object], key: str, where: str, default: int | None = None) -> int:
    """The integer at *key*; *default* when there is none. Raises InputError as :func:`string` does."""
    value = source.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(value, at(where, key), "an integer")
    return value


def boolean(source: dict[str, object], key: str, where: str) -> bool:
    """The truth value at *key*, False when there is none. Raises InputError."""
    value = source.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(value, at(where, key), "true or false")
    return bool(value)


def mapping(source: dict[str, object], key: str, where: str) -> dict[str, object]:
    """The object at *key*, an empty one when there is none. Raises InputError."""
    value = source.get(key)
    return {} if value is None else as_mapping(value, at(where, key))


def array(source: dict[str, object], key: str, where: str) -> list[object]:
    """The array at *key*, an empty one when there is none. Raises InputError."""
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(value, at(where, key), "an array")
    return value


def strings(source: dict[str, object], key: str, where: str) -> list[str]:
    """The array of strings at *key*, an empty one when there is none. Raises InputError."""
    found: list[str] = []
    for index, item in enumerate(array(source, key, where)):
        found.append(item if isinstance(item, str) and "\0" not in item else as_string(item, at(at(where, key), index)))
    return found


def string_map(source: dict[str, object], key: str, where: str) -> dict[str, str]:
    """The object of strings at *key* (annotations), an empty one when there is none. Raises InputError."""
    found: dict[str, str] = {}
    for name, value in mapping(source, key, where).items():
        if not isinstance(value, str):
            raise wrong(value, at(at(where, key), name), "a string")
        found[name] = value
    return found


def dumps(value: Any) -> str:
    """JSON text of plain values; the json module, whose encoder this calls, costs a hook 10 ms."""
    text = "".join(_encoder(value, 0))
    return _spelled_out(value) if "\\ud" in text else text  # perhaps half of a pair, which no reader takes


_encoder = make_encoder(None, list, encode_basestring_ascii, None, ":", ",", False, False, True)


def _spelled_out(value: Any) -> str:
    """The same, with bytes of names that are no UTF-8 as text."""
    if isinstance(value, str):
        return str(encode_basestring_ascii(value.encode("utf-8", "backslashreplace").decode()))
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{_spelled_out(str(key))}:{_spelled_out(item)}" for key, item in value.items()]) + "}"
    return "[" + ",".join([_spelled_out(item) for item in value]) + "]"
