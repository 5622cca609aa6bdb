"""JSON files that people write, held against the schemas: every error at once, each with its place and with what would be right.

The schemas (JSON Schema Draft-07, in ``schemas/``) carry the words: a ``title`` says in a few of them what a value must be. The
keywords are jsonschema's own; only their messages are ours, and ``pattern`` matches the whole string (Python's ``$`` would let a
newline through, which no ECMA regular expression does).
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import PurePath
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple, Type, TypeVar, cast

from dataclasses_json import dataclass_json, global_config
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from oci_hpc_hooks.errors import ConfigError, sentence
from oci_hpc_hooks.inputs import resources

#: Files that people write are small; what is larger is not one of them.
LIMIT = 1 << 20
#: An inventory lists the symbols of large libraries.
INVENTORY_LIMIT = 32 << 20

T = TypeVar("T")

# dataclasses-json 0.5.7 (Debian 12) would instantiate Mapping itself. It looks a field's type up as it is written: a string.
cast(Any, global_config).decoders["Mapping[str, str]"] = dict

KINDS = ("profile", "site", "inventory", "plan")

#: More errors than this are no help.
_MOST_ERRORS = 100
_LONGEST_NUMBER = 19


@dataclass(frozen=True)
class Problem:
    """One error of one file. ``path`` is a JSON path such as ``$.libraries[0].role``; ``$`` is the whole file.

    Of what is in a file, the message says what would be right; a file that cannot be read or believed has a ``remedy`` of its own, for
    ``who`` can do it.
    """

    file: str
    path: str
    message: str
    remedy: str = ""
    who: str = ""

    def __str__(self) -> str:
        if self.remedy:
            return sentence(self.message if self.file in self.message else f"{self.file}: {self.message}", "", self.remedy, self.who)
        return f"{self.file}: {self.message}" if self.path == "$" else f"{self.file}: {self.path}: {self.message}"


class Invalid(ConfigError):
    """One or more files are not what they should be; ``problems`` has every error of every file."""

    def __init__(self, problems: Sequence[Problem], *, remedy: str = "", who: str = "") -> None:
        self.problems = tuple(problems)
        lines = list(map(str, self.problems))
        what = lines[0] if len(lines) == 1 else f"{len(lines)} errors in the configuration:\n" + "\n".join(f"  {line}" for line in lines)
        super().__init__(what, remedy=remedy, who=who)

    def __str__(self) -> str:
        return self.what


def check(raw: bytes, kind: str, file: str) -> Dict[str, Any]:
    """The document in ``raw``, which the schema of this kind admits. Raises :class:`Invalid` with every error."""
    document = parse(raw, file)
    problems = schema_problems(document, kind, file)
    if problems:
        raise Invalid(problems)
    result: Dict[str, Any] = document
    return result


def to_dataclass(cls: Type[T], document: Dict[str, Any]) -> T:
    """A valid document as one of the model's frozen dataclasses; keys that it has no field for (``$schema``) are left out."""
    result: T = cast(Any, dataclass_json(cls)).from_dict(document)
    return result


def parse(raw: bytes, file: str) -> Any:
    """JSON as RFC 8259 has it, of which Python accepts more. Raises :class:`Invalid`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid([Problem(file, "$", f"not UTF-8 (byte {error.start}: 0x{raw[error.start]:02x}); save the file as UTF-8")]) from None
    if text.startswith("\ufeff"):
        raise Invalid([Problem(file, "$", "not JSON: it begins with a byte order mark; save the file as UTF-8 without one")])
    repeated: List[str] = []

    def members(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            repeated.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return result

    try:
        document = json.loads(text, object_pairs_hook=members, parse_int=_integer, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        found = repr(text[error.pos : error.pos + 20]) if error.pos < len(text) else "the end of the file"
        where = f"line {error.lineno} column {error.colno}"
        raise Invalid([Problem(file, "$", f"not JSON: {error.msg.lower()} at {where}, found {found}")]) from None
    except ValueError as error:
        raise Invalid([Problem(file, "$", f"not JSON: {error}")]) from None
    except RecursionError:
        raise Invalid([Problem(file, "$", "nested too deeply for a file of ours")]) from None
    if repeated:
        raise Invalid([Problem(file, "$", f"the key {_show(key)} occurs twice in one object; keep one") for key in repeated[:_MOST_ERRORS]])
    return document


def kind_of(document: Any, file: str) -> str:
    """Which of :data:`KINDS` this is, by its ``$schema``, its file name or what is in it. Raises :class:`Invalid` if nothing tells."""
    keys = set(document) if isinstance(document, dict) else set()
    named = PurePath(str(document["$schema"])).name if "$schema" in keys else ""
    for kind in KINDS:
        if named == f"{kind}.schema.json" or PurePath(file).name == f"{kind}.json":
            return kind
    if keys & {"libraries", "masked", "job", "interfaces"} or PurePath(file).parent.name == "profiles.d":
        return "profile"
    if "rests_on" in keys:
        return "inventory"
    if "verdict" in keys:
        return "plan"
    if keys & {"defaults", "on_refusal", "unproved"}:
        return "site"
    wanted = ", ".join(f'"{kind}.schema.json"' for kind in KINDS)
    raise Invalid([Problem(file, "$", f'cannot tell what kind of file this is; call it site.json, or give it a "$schema" of {wanted}')])


def schema_problems(document: Any, kind: str, file: str) -> Tuple[Problem, ...]:
    """Every error of a document against the schema of its kind, in the order of the document's paths."""
    try:
        errors = list(islice(_validator(kind).iter_errors(document), _MOST_ERRORS))
    except RecursionError:
        return (Problem(file, "$", "nested too deeply for a file of ours"),)
    errors.sort(key=lambda error: [str(step) for step in error.absolute_path])
    return tuple(Problem(file, json_path(error.absolute_path), error.message) for error in errors)


def json_path(steps: Iterable[Any]) -> str:
    """``$.libraries[0].role``; keys that are not plain words are quoted: ``$.defaults["org.supercontainers.mpi"]``."""
    path = "$"
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$]*", step):
            path += f".{step}"
        else:
            path += f"[{_show(step)}]"
    return path


def did_you_mean(found: Any, known: Iterable[Any]) -> str:
    """``"; did you mean 'x'?"`` if one of the known words is near, else nothing."""
    near = difflib.get_close_matches(str(found)[:100], [str(word) for word in known], n=1)
    return f"; did you mean {_show(near[0])}?" if near else ""


# ------------------------------------------------------------------------------------------------------------ JSON's numbers

def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON")


# ------------------------------------------------------------------------------------------------------------------- words

Schema = Dict[str, Any]
Say = Callable[[Any, Any, Dict[str, Any]], Iterable[str]]  # (value of the keyword, what was found, schema around it) -> messages

_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]} … ({len(text)} characters)"


def _type(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    names = [value] if isinstance(value, str) else value
    yield f"{_show(found)} is not {schema.get('title') or ' or '.join(_TYPES[name] for name in names)}"


def _pattern(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    yield f"{_show(found)} is not {schema.get('title') or f'of the form {value}'}"


def _enum(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    yield f"{_show(found)} is none of: {', '.join(map(_show, value))}{did_you_mean(found, value)}"


def _const(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    yield f"{_show(found)} is not {_show(value)}, the only value known here"


def _required(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    for key in value:
        if key not in found:
            description = schema.get("properties", {}).get(key, {}).get("description", "")
            yield f"the key {_show(key)} is missing{': ' + description if description else ''}"


def _additional_properties(value: Any, found: Any, schema: Schema) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in found:
        if key not in known:
            yield f"the key {_show(key)} is unknown{did_you_mean(key, known) or '; known are: ' + ', '.join(known)}"


def _size(few: str) -> Say:
    def say(value: Any, found: Any, schema: Schema) -> Iterator[str]:
        yield few.format(limit=value, found=len(found) if isinstance(found, (str, list, dict)) else _show(found))

    return say


_SAYS: Dict[str, Say] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "required": _required,
    "additionalProperties": _additional_properties,
    "minItems": _size("{found} entries, at least {limit} wanted"),
    "maxItems": _size("{found} entries, at most {limit} possible"),
    "minLength": _size("{found} characters, at least {limit} wanted"),
    "maxLength": _size("{found} characters, at most {limit} possible"),
    "minimum": _size("{found} is less than {limit}"),
    "maximum": _size("{found} is more than {limit}"),
    "minProperties": _size("{found} keys, at least {limit} wanted"),
    "maxProperties": _size("{found} keys, at most {limit} possible"),
    "uniqueItems": lambda value, found, schema: ["an entry occurs twice; keep one"],
}


def _worded(keyword: str, say: Say) -> Callable[..., Iterator[ValidationError]]:
    standard = Draft7Validator.VALIDATORS[keyword]

    def validate(validator: Any, value: Any, found: Any, schema: Schema) -> Iterator[ValidationError]:
        errors = standard(validator, value, found, schema) or ()
        if isinstance(value, dict):  # a schema for the other keys: its errors have their own words
            yield from errors
        elif any(True for _ in errors):
            yield from map(ValidationError, say(value, found, schema))

    return validate


def _whole_pattern(validator: Any, value: str, found: Any, schema: Schema) -> Iterator[ValidationError]:
    if isinstance(found, str) and not re.fullmatch(value, found):
        yield from map(ValidationError, _pattern(value, found, schema))


@cache
def _validator(kind: str) -> Any:
    schema = json.loads(resources.find(f"schemas/{kind}.schema.json").read_text(encoding="utf-8"))
    keywords: Dict[str, Any] = {keyword: _worded(keyword, say) for keyword, say in _SAYS.items()}
    keywords["pattern"] = _whole_pattern
    return cast(Any, extend)(Draft7Validator, keywords)(schema)
