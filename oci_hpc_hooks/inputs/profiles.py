"""Profiles: which libraries of the node answer which request. Data of the package and of the site, no code.

A file in ``profiles.d`` of the configuration directory takes the place of the shipped profile of the same name; with ``"masked": true``
it switches that profile off.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import resources, trust, validate
from oci_hpc_hooks.inputs.validate import Invalid, Problem
from oci_hpc_hooks.model import STACKS, Profile


def profile(document: Dict[str, Any], source: str) -> Profile:
    """A valid document as a :class:`Profile`."""
    return validate.to_dataclass(Profile, {**document, "source": source})


def semantic_problems(document: Dict[str, Any], file: str) -> List[Problem]:
    """What no schema can say about one profile."""
    problems = []
    stem = Path(file).stem
    if document["name"] != stem:
        problems.append(Problem(file, "$.name", f"{document['name']!r} in a file called {stem}.json; the two must be the same"))
    for key in ("libraries", "search", "plugins", "immovable", "variants", "sets") if "launcher" in document.get("provides", ()) else ():
        if key in document:
            problems.append(Problem(file, f"$.{key}", "a profile of a launcher brings no libraries; give them to the profile of an MPI"))
    kind = next(iter(document.get("provides", ())), "")
    for has, what in (("mpi", "an MPI"), ("gpu", "a stack of GPUs")):
        if has == kind and "libraries" not in document:
            problems.append(Problem(file, "$", f'the key "libraries" is missing: a profile that provides {what} names its libraries'))
    if kind == "fabric" and "libraries" not in document and "devices" not in document:
        problems.append(Problem(file, "$", "a profile that provides a fabric has libraries or devices, and this one has neither"))
    for key in ("companions", "icds", "files", "newer", "cdi") if kind and kind not in STACKS else ():
        if key in document:
            problems.append(Problem(file, f"$.{key}", "only a profile of GPUs or of a fabric brings these"))
    for key in ("gpus", "gpus_of") if kind not in ("", "gpu") else ():
        if key in document:
            problems.append(Problem(file, f"$.{key}", "only a profile of a GPU stack has these"))
    problems += _network_problems(document, file)
    seen: Dict[str, str] = {}
    for index, library in enumerate(document.get("libraries", ())):
        at = f"$.libraries[{index}]"
        names = {f"{at}.soname": library["soname"]}
        names.update({f"{at}.replaces[{number}]": name for number, name in enumerate(library.get("replaces", ()))})
        for path, name in names.items():
            if name in seen:
                problems.append(Problem(file, path, f"{name!r} is named by {seen[name]} already"))
            seen.setdefault(name, path)
    return problems + repeated_variants([variant["name"] for variant in document.get("variants", ())], "$.variants", file)


def _network_problems(document: Dict[str, Any], file: str) -> List[Problem]:
    if ("network" in document.get("provides", ())) != ("interfaces" in document):
        if document.get("masked"):
            return []
        return [Problem(file, "$", "interfaces belong to a profile that provides a network, and such a profile has some")]
    problems = []
    for index, interface in enumerate(document.get("interfaces", ())):
        at = f"$.interfaces[{index}]"
        if interface["mode"] == "move" and "addresses" in interface:
            problems.append(Problem(file, f"{at}.addresses", "an interface that is moved brings its own"))
        if "*" in interface["device"]:
            problems += [Problem(file, f"{at}.{key}", "more than one interface may be meant by device") for key in ("name", "addresses")
                         if key in interface]
        for number, address in enumerate(interface.get("addresses", ())):
            try:
                ipaddress.ip_interface(address)
            except ValueError:
                problems.append(Problem(file, f"{at}.addresses[{number}]", f"{address!r} is no address with the length of a prefix"))
    return problems


def repeated_variants(names: Sequence[str], at: str, file: str) -> List[Problem]:
    """What no schema can say about a list of variants."""
    return [
        Problem(file, f"{at}[{index}].name", f"the variant {name!r} is named twice; keep one")
        for index, name in enumerate(names) if name in names[:index]
    ]


def read_profiles(
    config_dir: str,
    problems: List[Problem],
    consulted: List[str],
    *,
    fixed: Sequence[str] = (),
    shipped: Path = resources.PROFILES,
) -> Dict[str, Optional[Profile]]:
    """Every profile by name, None for one that is masked.

    Errors are appended to ``problems``, and the paths that the answer rests on to ``consulted``. The shipped files are as trusted as the
    code beside them; those of the configuration directory must be root's (``fixed`` as in :func:`trust.read_trusted`). Raises
    :class:`ConfigError` only where the installation lacks its schemas: the trouble of no file in particular.
    """
    found: Dict[str, Optional[Profile]] = {}
    own = os.path.join(config_dir, "profiles.d")
    for directory in (str(shipped), own):
        consulted.append(directory)
        for name in sorted(_listdir(directory, problems)):
            if not name.endswith(".json") or name.startswith("."):
                continue
            path = os.path.join(directory, name)
            consulted.append(path)
            try:
                raw = trust.read_trusted(path, validate.LIMIT, fixed) if directory == own else Path(path).read_bytes()
            except ConfigError as error:
                problems.append(Problem(path, "$", error.what, error.remedy, error.who))
                continue
            except OSError as error:
                problems.append(Problem(path, "$", f"cannot be read: {error.strerror}"))
                continue
            try:
                document = validate.check(raw, "profile", path)
            except Invalid as error:
                problems.extend(error.problems)
                continue
            problems.extend(semantic_problems(document, path))
            found[name[:-5]] = None if document.get("masked") else profile(document, path)
    return found


def _listdir(directory: str, problems: List[Problem]) -> List[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(Problem(directory, "$", f"cannot be read: {error.strerror}"))
        return []
