"""docs/messages.json: every message that the code can bring is in it, with a cause, and with a test that brings it.

docs/messages.md is made of it by running these tests (docs/generate.py), so an example is what a person would have read.
"""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Set

import pytest

from oci_hpc_hooks import cold, wireup
from oci_hpc_hooks.cli import cdi, check, target
from oci_hpc_hooks.decide import job
from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.decide.request import FABRIC, MPI, MPI_MODE, request
from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import describe
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import PROVED, Plan, ResolvedProfile, Site
from oci_hpc_hooks.report import Places
from tests.unit.decide.test_plan import decide
from tests.unit.decide.world import APP, OPENMPI, container, elf, inventory, mpich_image, program, site_fabric
from tests.unit.decide.world import codes as codes_of

ROOT = Path(__file__).resolve().parents[2]
KNOWN: Dict[str, Dict[str, str]] = json.loads((ROOT / "docs/messages.json").read_text())

#: Calls that bring a message, and which of their arguments is its code.
CALLS = {"Finding": 1, "No": 0, "lacking": 0, "tell": 1, "_error": 0, "_warning": 0, "Fault": 0, "_missing": 0}


def codes() -> Iterator[str]:
    """Every code that stands in the source as such."""
    for path in sorted((ROOT / "oci_hpc_hooks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                place = CALLS.get(name)
                if place is not None and len(node.args) > place:
                    code = node.args[place]
                    if isinstance(code, ast.Constant) and isinstance(code.value, str) and code.value.replace("-", "").isalpha():
                        yield code.value


def test_every_code_is_known() -> None:
    found: Set[str] = set(codes())
    assert len(found) > 60
    assert sorted(found - KNOWN.keys()) == []


def test_examples_are_whole_sentences() -> None:
    """A test may bring a message with a word in it that stands for the real one: then another test's is the example."""
    said = [line for line in (ROOT / "docs/messages.md").read_text().splitlines() if line.startswith(("> ", "**"))]
    assert [line for line in said if line.rstrip().endswith((":", "**", "."))] == []
    assert [line for line in said if re.search(r"\b(DETAIL|REMEDY|WHAT)\b", line)] == []


def test_what_is_no_mere_note_has_a_remedy() -> None:
    """On the page, which is what tests bring: an error or a warning says who can do what."""
    for text in (ROOT / "docs/messages.md").read_text().split("\n## ")[1:]:
        assert "\n> note: " in text or "\n**" in text, text


def test_every_row_has_a_cause_and_a_test() -> None:
    for code, row in KNOWN.items():
        assert row.keys() == {"cause", "test"} and row["cause"].endswith("."), code
        file, _, name = row["test"].partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), code
    assert list(KNOWN) == sorted(KNOWN)


# -- messages that no other unit test brings

def test_an_annotation_that_means_nothing() -> None:
    root = Root(os.open("/", os.O_PATH))
    answer = check.decide(container(annotations={MPI: "mpihc"}), root, inventory())
    assert [finding.code for finding in answer.plan.findings] == ["request"]


def test_a_directory_of_the_job_that_does_not_come() -> None:
    record = {"job": {"origin": "site default org.supercontainers.launcher=auto"}}
    path = "/var/spool/slurmd/pmix.1.0"
    assert wireup._missing("job-directory", path, "it is not there", record)["severity"] == "warning"


def test_what_a_default_cannot_get_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told: List[Any] = []
    start = SimpleNamespace(state=None, config={}, image=None)
    service: Any = SimpleNamespace(start=start, log=lambda *said, **more: told.append((said, more)))
    monkeypatch.setattr(describe, "to_container", lambda *_: container())
    cold.run(service, OSError(28, "No space left on device"))
    assert told[0][1]["findings"][0]["code"] == "skipped"


SITE = '{"version": 1, "on_refusal": "run-without"}'


@pytest.mark.parametrize(("site", "touched", "refuses"), [(SITE, False, False), (SITE, True, True), ("", False, True), ("{", False, True),
                                                          (SITE.replace("run-without", "refuse"), False, True)])
def test_an_explicit_wish_where_the_site_has_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, touched: bool,
                                                     refuses: bool) -> None:
    """on_refusal counts as soon as it can be read, whatever else is wrong: but a start that was mounted into is none without."""
    told: List[Any] = []
    if site:
        (tmp_path / "site.json").write_text(site)
    start = SimpleNamespace(state=None, config={}, image=None)
    service: Any = SimpleNamespace(start=start, log=lambda *said, **more: told.append((said, more)), touched=touched,
                                   places=Places(str(tmp_path), "/nowhere", "/nowhere", "/nowhere"))
    monkeypatch.setattr(describe, "to_container", lambda *_: container(annotations={MPI: "mpich"}))
    trouble = ConfigError("the configuration is wrong", remedy="correct it", who="site admin")
    if refuses:
        with pytest.raises(cold.Told, match=r"the configuration is wrong .*Site admin: correct it; to start without injection give"):
            cold.run(service, trouble)
    else:
        cold.run(service, trouble)
    (verdict, _), more = told[0]
    assert verdict == ("refused" if refuses else "nothing")
    assert refuses or [finding["code"] for finding in more["findings"]] == ["skipped"]


def test_ranks_that_need_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of what ranks need are the names of the methods that look for it."""
    needs = {name[len("need_"):] for name in vars(job._Decision) if name.startswith("need_")}
    assert needs <= KNOWN.keys()


def test_a_program_that_is_not_there() -> None:
    facts = replace(mpich_image().facts(APP), entrypoint="missing")
    (warning,) = target.program_missing(replace(container(), args=("mysolvr", "-n")), facts)
    assert warning.what == "the image has no program mysolvr"
    assert target.program_missing(replace(container(), args=()), facts) == ()
    assert target.program_missing(replace(container(), args=("app",)), replace(facts, entrypoint="script")) == ()


def test_a_program_that_is_none() -> None:
    image = mpich_image()
    made = decide(replace(image.facts("/usr/bin/broken"), unreadable={"/usr/bin/broken": "it ends in its first header"}))
    assert "program-unreadable" in codes_of(made)


def test_another_program_that_loads_another_mpi() -> None:
    image = (mpich_image().add("/opt/conda/lib/libmpi.so.12", elf("libmpi.so.12", exports=OPENMPI, needed=("libc.so.6",)))
             .add("/usr/bin/other", program("libmpi.so.12", rpath="/opt/conda/lib")).add("/bin/sleep", program()))
    made = decide(replace(image.facts("/bin/sleep"), consumers=("/usr/bin/other",)))
    assert "consumer-family" in codes_of(made)


def test_what_a_specification_cannot_say() -> None:
    found = cdi._unsaid_of_plan(Plan(PROVED, ()), ())
    assert [finding.code for finding in found] == ["cdi"]


def test_a_fabric_that_is_nothing_but_devices() -> None:
    where = container(annotations={FABRIC: "xpmem"})
    offers = inventory(ResolvedProfile("xpmem", {"fabric": "xpmem"}, "", (), devices=("/dev/xpmem",)))
    made = plan(where, request(where, Site()), offers, mpich_image().facts(APP))
    assert "devices" in codes_of(made)


def test_in_which_way_a_fabric_comes() -> None:
    where = container(annotations={FABRIC: "libfabric", MPI_MODE: "libfabric_replace"})
    image = mpich_image()
    image.add("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", needed=("libc.so.6",), verdef=("FABRIC_1.0",)), cached=True)
    site = ResolvedProfile("libfabric", {"fabric": "libfabric"}, "", (replace(site_fabric(), role="replace"),))
    made = plan(where, request(where, Site()), inventory(site), image.facts(APP))
    assert "mode" in codes_of(made)
