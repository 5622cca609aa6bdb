"""Seeds: the files of the corpus, pieces of this repository, and a bounded number of damaged copies of each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Iterator, List

from tests.fuzz import files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: Of a longer seed the damaged copies would all be damaged in the same uninteresting middle.
LONGEST = 16 << 10


def of(name: str) -> List[bytes]:
    """The seeds of a target, always in the same order."""
    found = [path.read_bytes() for path in sorted((HERE / "corpus" / name).glob("*"))]
    if name == "profile":
        found += [path.read_bytes() for path in sorted((ROOT / "oci_hpc_hooks").glob("profiles.d/*.json"))]
    if name in ("state", "config", "edited_config"):  # what podman and the runtimes have really written
        file = "state.json" if name == "state" else "config.json"
        found += [path.read_bytes() for path in sorted((ROOT / "tests/unit/inputs/data/podman").glob(f"*/{file}"))]
    if name == "cdi_specification":
        found += [path.read_bytes() for path in sorted((ROOT / "tests/unit/cdi/data").glob("*.json")) if "cdiVersion" in path.read_text()]
    if name == "device_program":
        found += [bytes.fromhex(path.read_text()) for path in sorted((ROOT / "tests/unit/data/device-filters").glob("*.hex"))]
    if name == "image":
        found += [bytes([number]) + content for number, content in enumerate(files.IMAGE.values())]
    if name == "elf":
        found += [content for content in files.IMAGE.values() if content.startswith(b"\x7fELF")]
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy with one to three faults: cut, a bit turned, a byte replaced, a piece doubled or taken out, a number made extreme."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            del made[at:]
        elif kind == 1 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and at < len(made):
            made[at] = chance.choice(b"\x00\xff\x7f\x80\n\r\x0b\x1c\"{}[]:,/ #=-")
        elif kind == 3:
            made[at:at] = made[at:at + chance.randint(1, 64)]
        elif kind == 4:
            del made[at:at + chance.randint(1, 64)]
        else:
            made[at:at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"1" * 80, b"1e999"))
    return bytes(made)


#: What stands in JSON where something else is expected.
ODD: List[Any] = [None, True, False, 0, -1, 1 << 63, 1 << 64, 10 ** 63, 1.5, "", "\0", "\u2028", "x" * 5000, [], {}, [[]], {"": None}, "/",
                  "../..", "\ud800"]


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A copy in which one value or key is another one; *data* as it is where it is no JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(document))
    if not places:
        return json.dumps(chance.choice(ODD)).encode()
    holder, key = chance.choice(places)
    kind = chance.randrange(4)
    if kind == 0:
        holder[key] = chance.choice(ODD)
    elif kind == 1:
        other, name = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 2:
        del holder[key]
    elif isinstance(holder, dict):
        holder[chance.choice(["", key.upper(), key + "\0", "$schema"])] = holder[key]
    else:
        holder.append(holder[key])
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[Any]:
    todo = [value]
    while todo:
        value = todo.pop()
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield value, key
            todo.append(value[key])
