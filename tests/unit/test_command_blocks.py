"""Every block of README.md and docs/*.md that a reader would type is typed by a test, or it is said here why not.

The table has them in the order of their pages: words of each, and the test that reads it from the page. What a block shows besides commands
(a message, a file's text) is in it too, so that none is forgotten. Blocks of JSON are not: test_docs.py finds those by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from tests.pages import ROOT, blocks, pages

#: Instead of a test.
NOT_RUN = "not run: "
SHOWN = "shown: "

NEWCOMER = "tests/engine/test_newcomer.py::test_from_nothing_to_the_sites_mpi"
RECIPE = "tests/ranks/test_recipes.py::test_recipe"
HPC = "tests/ranks/test_podman_hpc.py::test_recipe"
RPM = "tests/engine/test_rpm.py::test_the_first_container_and_the_first_refusal"
SCIENTIST = "tests/engine/test_newcomer.py::test_a_scientist"
TUTORIAL = "tests/engine/test_tutorial.py::test_the_commands_say_what_the_page_shows"

TABLE: Dict[str, List[Tuple[str, str]]] = {
    "README.md": [
        ("needs GLIBC_2.38", "tests/unit/test_command_blocks.py::test_the_message_of_the_readme"),
        ("make demo", "tests/engine/test_newcomer.py::test_the_demo"),
        ("pip install .", NEWCOMER),
        ('"search": ["/opt/site/mpich/lib"]', NEWCOMER),
        ("oci-hpc-hooks scan", NEWCOMER),
        ("podman run --hooks-dir", NEWCOMER),
        ("hooks_dir =", "tests/engine/test_newcomer.py::test_the_folder_of_every_podman"),
        ("oci-hpc-hooks check", "tests/engine/test_newcomer.py::test_other_ways_to_ask"),
        ("LABEL org.supercontainers.mpi=mpich", NEWCOMER),
    ],
    "docs/admin.md": [
        ("rpmbuild --rebuild", "tests/engine/test_rpm.py::test_no_scriptlet_does_anything_in_an_image"),
        ("systemctl enable --now", "tests/engine/test_rpm.py::test_the_units"),
        ("hooks_dir =", RPM),
        ("oci-hpc-hooks doctor", RPM),
        ("mpi=openmpi", RPM),
        ("features --format slurm", "tests/engine/test_rpm.py::test_what_the_page_shows"),
        ("$ oci-hpc-hooks doctor", "tests/engine/test_rpm.py::test_what_the_page_shows"),
        ("check --remember", "tests/engine/test_remember.py::test_the_page"),
        ("inventory.json /srv", "tests/engine/test_rpm.py::test_what_the_page_shows"),
        ("mpi=none", "tests/engine/test_rpm.py::test_switched_off"),
    ],
    "docs/cdi.md": [
        ("podman run --rm --device", "tests/engine/test_cdi.py::test_the_page"),
        ("oci-hpc-hooks cdi --output", "tests/engine/test_cdi.py::test_the_page"),
    ],
    "docs/check.md": [
        ("check --inventory alpha.json", "tests/engine/test_examples.py::test_check"),
        ("--inventory beta=beta.json", "tests/engine/test_examples.py::test_check"),
        ("check --digest", "tests/engine/test_examples.py::test_digest"),
        ("explain solver", "tests/engine/test_examples.py::test_explain"),
    ],
    "docs/contributing.md": [
        ("make test", "tests/unit/test_docs.py::test_make_targets_exist"),
        ("tests.bed.hardware", "tests/engine/test_hardware.py::test_a_fixture_is_sound"),
    ],
    "docs/design.md": [
        ("plan()", SHOWN + "a drawing"),
    ],
    "docs/engines.md": [
        ("docker run --runtime hpc", "tests/engine/test_other_engines.py::test_docker"),
        ('"runtimes"', SHOWN + "what --add-runtime says, as a file of /etc"),
        ("docker run --device", "tests/engine/test_other_engines.py::test_docker_by_cdi"),
        ('"cdi": true', "tests/engine/test_other_engines.py::test_docker_by_cdi"),
        ("ctr run", "tests/engine/test_other_engines.py::test_containerd"),
        ("ch-run", "tests/engine/test_other_engines.py::test_charliecloud_as_the_page_has_it"),
    ],
    "docs/fabrics.md": [
        ("fabric=libfabric", "tests/engine/test_fabrics.py::test_what_the_page_shows"),
        ("libfabric_inject", "tests/engine/test_fabrics.py::test_what_the_page_shows"),
    ],
    "docs/gpus.md": [
        ("GPUs: cuda 2", SHOWN + "a line of check where there are GPUs"),
    ],
    "docs/index.md": [
        ("make demo", "tests/engine/test_newcomer.py::test_the_demo"),
    ],
    "docs/labels.md": [
        ("LABEL org", NEWCOMER),
        ("mpirun -n 2 podman run", "tests/ranks/test_recipes.py::test_mpirun_by_hand"),
    ],
    "docs/podman-hpc.md": [
        ("oci-hpc-hooks register", HPC),
        ("shared_run_exec_args", HPC),
        ("LABEL", NOT_RUN + "a Containerfile that installs packages from Debian's servers"),
        ("podman-hpc migrate", HPC),
        ("--hpc IMAGE", "tests/ranks/test_podman_hpc.py::test_labels_of_squashed_images"),
        ("--hpc-mpich", HPC),
        ("--hpc-openmpi", HPC),
        ("--mpi=pmi2", HPC),
        ("--mpi=pmix", HPC),
    ],
    "docs/profiles.md": [
        ("oci-hpc-hooks validate", TUTORIAL),
        ("gpu=acme IMAGE", "tests/engine/test_tutorial.py::test_the_caller_gets_all_of_it"),
        ("gpu=acme debian-11", "tests/engine/test_tutorial.py::test_what_does_not_fit_is_refused"),
        ("profiles draft", "tests/engine/test_draft.py::test_a_drafted_profile"),
    ],
    "docs/scientists.md": [
        ("srun -N 2", "tests/ranks/test_containers_conf.py::test_no_flags"),
        ("oci-hpc-hooks label", SCIENTIST),
        ("mpi=auto", SCIENTIST),
        ("oci-hpc-hooks check", SCIENTIST),
        ("oci-hpc-hooks explain", SCIENTIST),
    ],
    "docs/slurm.md": [
        ("--mpi=pmix", RECIPE),
        ("--userns=keep-id", RECIPE),
        ("--mpi=pmi2", RECIPE),
        ("every rank would be alone", SHOWN + "a message; docs/messages.md has it from a test"),
        ("--env 'SLURM_*'", RECIPE),
        ("--userns=keep-id", RECIPE),
        ("register --podman", RECIPE),
        ("--mpi=pmi2", RECIPE),
        ("--preserve-fds=1", RECIPE),
        ("cmd=abort", RECIPE),
        ("-pmi-port", RECIPE),
        ("check --expect", "tests/ranks/test_recipes.py::test_the_digests_of_two_nodes"),
        ("would not get here", "tests/ranks/test_recipes.py::test_the_digests_of_two_nodes"),
        ("check --remember", "tests/ranks/test_recipes.py::test_remembered_before_the_step"),
    ],
}
ENTRIES = [(page, words, by) for page, rows in TABLE.items() for words, by in rows]
RUN = sorted({(page, by) for page, _, by in ENTRIES if not by.startswith((NOT_RUN, SHOWN))})


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_no_block_is_forgotten(path: Path) -> None:
    page = str(path.relative_to(ROOT))
    found = [block.text for block in blocks(page) if block.kind != "json"]
    rows = TABLE.get(page, [])
    for text, (words, _) in zip(found, rows):
        assert words in text, f"{page}: the table has {words!r} where the page has\n{text}"
    assert len(found) == len(rows), f"{page}: not in the table:\n{found[len(rows):]}" if len(found) > len(rows) else rows[len(found):]


def test_no_page_is_too_much() -> None:
    assert set(TABLE) <= {str(path.relative_to(ROOT)) for path in pages()}


@pytest.mark.parametrize(("page", "node"), RUN, ids=[f"{page}-{node}" for page, node in RUN])
def test_the_test_reads_the_page(page: str, node: str) -> None:
    """It is there, and its file, or one of ours that it imports, names the page."""
    path, _, function = node.partition("::")
    text = (ROOT / path).read_text()
    assert re.search(rf"^def {function}\(", text, re.MULTILINE), node
    imported = [ROOT / f"{module.replace('.', '/')}.py" for module in re.findall(r"^from (tests\.[\w.]+) import", text, re.MULTILINE)]
    assert any(page in module.read_text() for module in [ROOT / path, *imported] if module.is_file()), f"{path} does not read {page}"


def test_the_message_of_the_readme() -> None:
    """It is the one of docs/check.md, which a test brings, from another site."""
    (message, *_) = (block.text for block in blocks("README.md"))
    said = " ".join(message.split()).partition("oci-hpc-hooks: ")[2]
    assert said.replace("/opt/site/lib", "/opt/mpich-4.3/lib") in (ROOT / "docs/check.md").read_text()
