"""site.json and profiles.d read together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, List

import pytest

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import resources, validate
from oci_hpc_hooks.inputs.site import configuration
from oci_hpc_hooks.inputs.validate import Invalid
from oci_hpc_hooks.model import Profile, ProfileLibrary, Site, SiteProfile, Variant

#: Profiles that are on whatever site.json lists.
STACKS = ["cuda", "levelzero", "opencl", "rocm",
          "cxi", "efa", "gdrcopy", "knem", "libfabric", "opx", "psm2", "ucx", "verbs", "xpmem"]
LAUNCHERS = ["hydra", "munge", "pals", "pmi2", "pmix", "slurm"]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("configuration counts only if root owns it")
    (tmp_path / "etc/profiles.d").mkdir(parents=True)
    return tmp_path / "etc"


def put(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def own(name: str) -> Any:
    return {
        "version": 1,
        "name": name,
        "description": "ours",
        "provides": {"mpi": "mpich"},
        "libraries": [{"soname": "libmpi.so.12", "role": "replace"}],
    }


def told(etc: Path) -> List[str]:
    with pytest.raises(Invalid) as caught:
        configuration(str(etc))
    return [str(problem) for problem in caught.value.problems]


def test_no_configuration_at_all(tmp_path: Path) -> None:
    found = configuration(str(tmp_path / "nothing"))
    assert found.site == Site()
    assert [profile.name for profile in found.profiles] == ["mpi-abi", "mpich", "openmpi", *STACKS, *LAUNCHERS]
    assert found.consulted == (
        str(tmp_path / "nothing/site.json"),
        str(resources.PROFILES),
        *(str(resources.PROFILES / f"{name}.json") for name in sorted(("mpi-abi", "mpich", "openmpi", *STACKS, *LAUNCHERS))),
        str(tmp_path / "nothing/profiles.d"),
    )


def test_documents_become_dataclasses(etc: Path) -> None:
    put(etc / "site.json", {
        "version": 1, "profiles": ["b", {"name": "a", "search": ["/x"]}], "defaults": {"org.supercontainers.mpi": "auto"},
        "on_refusal": "run-without", "unproved": "refuse",
    })  # fmt: skip
    put(etc / "profiles.d/a.json", own("a"))
    source = put(etc / "profiles.d/b.json", {**own("b"), "search": ["/opt/*"], "plugins": ["$ORIGIN/ucx"]})
    found = configuration(str(etc))
    assert found.site == Site(
        profiles=(SiteProfile("b"), SiteProfile("a", ("/x",))),
        defaults={"org.supercontainers.mpi": "auto"},
        on_refusal="run-without",
        unproved="refuse",
    )
    assert found.profiles[0] == Profile(
        name="b",
        description="ours",
        provides={"mpi": "mpich"},
        libraries=(ProfileLibrary("libmpi.so.12", "replace", (), True),),
        search=("/opt/*",),
        plugins=("$ORIGIN/ucx",),
        source=str(source),
    )
    assert [profile.name for profile in found.profiles] == ["b", "a", *STACKS, *LAUNCHERS]
    assert found.search("a") == ("/x",)
    assert found.search("b") == ()


def test_own_profile_takes_the_place_of_the_shipped_one(etc: Path) -> None:
    put(etc / "profiles.d/mpich.json", own("mpich"))
    _, profile, *_ = configuration(str(etc)).profiles
    assert (profile.name, profile.description) == ("mpich", "ours")


def test_an_installation_without_its_schemas(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once, and not of each profile: no file of the configuration has anything to do with it."""
    validate._validator.cache_clear()
    monkeypatch.setattr(resources, "PACKAGE", etc / "nowhere/oci_hpc_hooks")
    put(etc / "site.json", {"version": 1})
    with pytest.raises(ConfigError) as caught:
        configuration(str(etc))
    assert str(caught.value).count("schema.json; looked for") == 1 and "Site admin: install oci-hpc-hooks again." in str(caught.value)


def test_masked_profile_is_off(etc: Path) -> None:
    put(etc / "profiles.d/mpich.json", {"version": 1, "name": "mpich", "masked": True})
    assert [profile.name for profile in configuration(str(etc)).profiles] == ["mpi-abi", "openmpi", *STACKS, *LAUNCHERS]
    site = put(etc / "site.json", {"version": 1, "profiles": ["mpich"]})
    assert told(etc) == [f"{site}: $.profiles[0]: the profile 'mpich' is masked in profiles.d; remove the mask or this entry"]


def test_other_files_are_passed_over(etc: Path) -> None:
    for name in ("README", ".hidden.json", "mpich.json~", "a.json.rpmnew"):
        (etc / "profiles.d" / name).write_text("not JSON")
    assert [profile.name for profile in configuration(str(etc)).profiles] == ["mpi-abi", "mpich", "openmpi", *STACKS, *LAUNCHERS]


def test_launchers_are_on_unless_masked(etc: Path) -> None:
    put(etc / "site.json", {"version": 1, "profiles": ["mpich", "slurm"]})
    put(etc / "profiles.d/pals.json", {"version": 1, "name": "pals", "masked": True})
    names = [profile.name for profile in configuration(str(etc)).profiles]
    assert names == ["mpich", "slurm", *STACKS, "hydra", "munge", "pmi2", "pmix"]


def test_what_profiles_of_launchers_and_of_an_mpi_must_have(etc: Path) -> None:
    a = put(etc / "profiles.d/a.json", {**own("a"), "provides": {"launcher": "a"}})
    document = own("b")
    del document["libraries"]
    b = put(etc / "profiles.d/b.json", document)
    assert told(etc) == [
        f"{a}: $.libraries: a profile of a launcher brings no libraries; give them to the profile of an MPI",
        f'{b}: the key "libraries" is missing: a profile that provides an MPI names its libraries',
    ]


def test_all_errors_of_all_files(etc: Path) -> None:
    site = put(etc / "site.json", {"version": 1, "unproved": "maybe"})
    a = put(etc / "profiles.d/a.json", {**own("a"), "search": ["x"], "plugins": ["y"]})
    b = etc / "profiles.d/b.json"
    b.write_text("{")
    c = put(etc / "profiles.d/c.json", own("c"))
    c.chmod(0o666)
    d = put(etc / "profiles.d/d.json", own("e"))
    lines = told(etc)
    assert [line.split(": ")[0] for line in lines if line != lines[4]] == [str(site), str(a), str(a), str(b), str(d)]
    assert lines[4] == f"{c} is owned by uid 0 with mode 0666, so others than root can write it. Site admin: chmod go-w {c}."
    assert "$.name: 'e' in a file called d.json; the two must be the same" in lines[5]


def test_profile_that_does_not_exist(etc: Path) -> None:
    put(etc / "site.json", {"version": 1, "profiles": ["mpihc", "zzz", "mpich", "mpich"]})
    first, second, third = told(etc)
    assert "$.profiles[0]: there is no profile 'mpihc'; did you mean \"mpich\"?" in first
    assert "$.profiles[1]: there is no profile 'zzz'; installed are: cuda, cxi, efa, gdrcopy, hydra, " in second
    assert "$.profiles[3]: the profile 'mpich' is named twice" in third


def test_library_named_twice(etc: Path) -> None:
    libraries = [
        {"soname": "libmpi.so.12", "role": "replace", "replaces": ["libmpich.so.12"]},
        {"soname": "libmpich.so.12", "role": "replace"},
    ]
    put(etc / "profiles.d/a.json", {**own("a"), "libraries": libraries})
    (line,) = told(etc)
    assert "$.libraries[1].soname: 'libmpich.so.12' is named by $.libraries[0].replaces[0] already" in line


def test_variants_of_site_and_profile(etc: Path) -> None:
    put(etc / "site.json", {"version": 1, "profiles": [{"name": "a", "variants": [
        {"name": "el6", "search": ["/site/el6"]}, {"name": "el7", "search": ["/site/el7"]}]}, "b"]})
    put(etc / "profiles.d/a.json", {**own("a"), "variants": [
        {"name": "el8", "search": ["/el8"]}, {"name": "el7", "search": ["/el7", "/el7/*"]}]})
    put(etc / "profiles.d/b.json", own("b"))
    found = configuration(str(etc))
    assert found.variants(found.profiles[0]) == (
        Variant("el6", ("/site/el6",)), Variant("el7", ("/site/el7", "/el7", "/el7/*")), Variant("el8", ("/el8",)))
    assert found.variants(found.profiles[1]) == ()


def test_variant_named_twice(etc: Path) -> None:
    twice = [{"name": "el7", "search": ["/a"]}, {"name": "el8", "search": ["/b"]}, {"name": "el7", "search": ["/c"]}]
    put(etc / "profiles.d/a.json", {**own("a"), "variants": twice})
    assert told(etc)[0].endswith("a.json: $.variants[2].name: the variant 'el7' is named twice; keep one")
    put(etc / "profiles.d/a.json", own("a"))
    put(etc / "site.json", {"version": 1, "profiles": ["b", {"name": "a", "variants": twice}]})
    put(etc / "profiles.d/b.json", own("b"))
    (line,) = told(etc)
    assert line.endswith("site.json: $.profiles[1].variants[2].name: the variant 'el7' is named twice; keep one")


def test_site_json_of_another_user(etc: Path) -> None:
    site = put(etc / "site.json", {"version": 1})
    os.chown(site, 1000, 1000)
    (line,) = told(etc)
    assert f"chown root {site}" in line


def test_broken_own_profile_does_not_bring_the_shipped_one_back(etc: Path) -> None:
    (etc / "profiles.d/mpich.json").write_text("{}")
    assert len(told(etc)) == 4
