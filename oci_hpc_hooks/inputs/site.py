"""The site's configuration: site.json and the profiles it switches on, read together so that all errors are told at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import profiles, resources, trust, validate
from oci_hpc_hooks.inputs.validate import Invalid, Problem
from oci_hpc_hooks.model import STACKS, Profile, Site, SiteProfile, Variant

#: What to do about a file whose content is wrong.
CORRECT = "correct it; oci-hpc-hooks validate FILE looks again"


@dataclass(frozen=True)
class Configuration:
    """What the site decided: the profiles that are on, in order of preference, and the paths that all of it was read from."""

    site: Site
    profiles: Tuple[Profile, ...]
    consulted: Tuple[str, ...]

    def search(self, name: str) -> Tuple[str, ...]:
        """The site's own directories for this profile."""
        return next((entry.search for entry in self.site.profiles if entry.name == name), ())

    def root(self, name: str) -> str:
        """What stands for "/" in this profile's paths, "" for "/" itself."""
        return next((entry.root for entry in self.site.profiles if entry.name == name), "")

    def cdi(self, profile: Profile) -> str:
        """The CDI device that the profile goes by, "" for none; the site's word goes first."""
        return next((entry.cdi for entry in self.site.profiles if entry.name == profile.name), "") or profile.cdi

    def variants(self, profile: Profile) -> Tuple[Variant, ...]:
        """The profile's variants; of one that the site names too, the site's directories come first."""
        site = next((entry.variants for entry in self.site.profiles if entry.name == profile.name), ())
        search: Dict[str, Tuple[str, ...]] = {}
        for variant in (*site, *profile.variants):
            search[variant.name] = (*search.get(variant.name, ()), *variant.search)
        return tuple(Variant(name, directories) for name, directories in search.items())


def site(document: Dict[str, Any]) -> Site:
    """A valid document as a :class:`Site`."""
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in document.get("profiles", ())]
    runtime = document.get("c_runtime", "none")
    if isinstance(runtime, dict):
        document = {**document, "c_runtime": "host", "c_runtime_search": runtime["search"]}
    return validate.to_dataclass(Site, {**document, "profiles": entries})


def configuration(config_dir: str, *, fixed: Sequence[str] = (), shipped: Path = resources.PROFILES) -> Configuration:
    """Read site.json (absent: the defaults of :class:`Site`) and every profile; ``fixed`` as in :func:`trust.read_trusted`.

    Raises :class:`Invalid` with every error of every file, those of ownership and mode included; another :class:`ConfigError` where the
    installation lacks its schemas.
    """
    problems: List[Problem] = []
    path = os.path.join(config_dir, "site.json")
    consulted = [path]
    decided = Site()
    try:
        raw = trust.read_trusted(path, validate.LIMIT, fixed)
    except trust.Missing:
        pass
    except ConfigError as error:
        problems.append(Problem(path, "$", error.what, error.remedy, error.who))
    else:
        try:
            decided = site(validate.check(raw, "site", path))
        except Invalid as error:
            problems.extend(error.problems)
    known = profiles.read_profiles(config_dir, problems, consulted, fixed=fixed, shipped=shipped)
    if not problems:
        problems.extend(semantic_problems(decided, known, path))
    if problems:
        content = any(not problem.remedy for problem in problems)
        raise Invalid(problems, remedy=CORRECT if content else "", who="site admin")
    named = [entry.name for entry in decided.profiles]
    kinds = {name: next(iter(profile.provides.items())) for name, profile in known.items() if profile is not None}
    # Naming an MPI says that the others are off, and nothing of stacks; naming one stack says nothing of the others, which do not
    # exclude each other. Nor do launchers, so that all of them are on.
    groups = {name: ("mpi", "") if kind == "mpi" else (kind, value) for name, (kind, value) in kinds.items()}
    chosen = {groups[name] for name in named if kinds[name][0] != "launcher"}
    others = [name for name, group in groups.items() if group not in chosen]
    others.sort(key=lambda name: (("mpi", *STACKS, "launcher", "network").index(kinds[name][0]), name))
    names = dict.fromkeys([*named, *others])
    enabled = [found for found in map(known.get, names) if found]
    return Configuration(decided, tuple(enabled), tuple(consulted))


def semantic_problems(decided: Site, known: Dict[str, Optional[Profile]], file: str) -> List[Problem]:
    """What no schema can say: each profile that is named exists, is not masked and is named once."""
    problems = []
    seen: Dict[str, SiteProfile] = {}
    for index, entry in enumerate(decided.profiles):
        at = f"$.profiles[{index}]"
        if entry.name not in known:
            hint = validate.did_you_mean(entry.name, known) or f"; installed are: {', '.join(sorted(known)) or 'none'}"
            problems.append(Problem(file, at, f"there is no profile {entry.name!r}{hint}"))
        elif known[entry.name] is None:
            problems.append(Problem(file, at, f"the profile {entry.name!r} is masked in profiles.d; remove the mask or this entry"))
        if entry.name in seen:
            problems.append(Problem(file, at, f"the profile {entry.name!r} is named twice; keep one"))
        seen[entry.name] = entry
        profile = known.get(entry.name)
        if entry.root and profile is not None and not profile.is_stack:
            problems.append(Problem(file, f"{at}.root", "only a profile of GPUs or of a fabric can have a root of its own"))
        if entry.cdi and profile is not None and not profile.is_stack:
            problems.append(Problem(file, f"{at}.cdi", "only a profile of GPUs or of a fabric can go by a CDI specification"))
        if entry.cdi and entry.root:
            problems.append(Problem(file, f"{at}.cdi", "the CDI specification says where the files are; leave root out"))
        problems += profiles.repeated_variants([variant.name for variant in entry.variants], f"{at}.variants", file)
    return problems
