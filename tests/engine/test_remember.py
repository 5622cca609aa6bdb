"""``check --remember``: the first start of an image on a node is a warm one, and replays what it would have decided itself."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.inside import HELLO, assert_own, assert_site, start
from tests.engine.site import ReadySite, forget, ready, three_engines  # noqa: F401
from tests.pages import blocks

#: Both stages, of which the long run has the second; the short one has it in tests/ranks/test_recipes.py.
STAGES = pytest.mark.parametrize("stage", [pytest.param(".", id="createRuntime"),
                                           pytest.param("podman", id="precreate", marks=pytest.mark.long)])
ANNOTATION = "org.supercontainers.mpi"


def remember(engine: Engine, site: Site, *arguments: str, options: str = "", hooks_dir: Path | None = None) -> Result:
    """``check --remember`` for containers as `start` makes them."""
    options += " --net=none" + (" --userns=keep-id" if engine.user == "keep-id" else "") + f" --runtime={engine.runtime}"
    return site.command("check", "--remember", f"--run-options={options}", "--hooks-dir", str(hooks_dir or site.hooks_dir), *arguments,
                        engine.load("bookworm-mpich"), "--", *HELLO, account=site.account)


def plans(site: Site) -> dict[str, bytes]:
    """Every remembered plan of root's or the user's, by its file's name."""
    folder = Path(f"/run/user/{site.account.uid}/oci-hpc-hooks/plans") if site.account.uid else site.cache_dir / "plans"
    found = {file.name: file.read_bytes() for file in folder.glob("*.plan")}
    assert all(file.stat().st_uid == site.account.uid for file in folder.iterdir())
    return found


@three_engines
@STAGES
def test_the_first_start_is_a_warm_one(engine: Engine, ready: ReadySite, stage: str) -> None:  # noqa: F811
    """And the plan is that of a cold start, byte by byte; nothing else is left of the two containers that it took."""
    site = ready(engine)
    before = engine.podman("ps", "--all", "--quiet").stdout
    known = len(site.log())
    done = remember(engine, site, hooks_dir=site.hooks_dir / stage)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("; a warm start, its plan is remembered\n")
    assert [(entry["path"], entry["verdict"]) for entry in site.log()[known:]] == [("cold", "proved"), ("warm", "proved")]
    assert engine.podman("ps", "--all", "--quiet").stdout == before
    remembered = plans(site)
    assert len(remembered) == 1
    if site.account.uid:
        assert not list(site.cache_dir.iterdir())  # a user's plans are the user's own

    result, log = start(engine, site, *HELLO, hooks_dir=site.hooks_dir / stage)
    assert_site(result)
    assert [entry["path"] for entry in log] == ["warm"]

    forget(site)
    assert_site(start(engine, site, *HELLO, hooks_dir=site.hooks_dir / stage)[0])
    assert plans(site) == remembered


@STAGES
def test_other_wishes_are_decided_anew(crun: Engine, ready: ReadySite, stage: str) -> None:  # noqa: F811
    """An annotation or a volume that was not given beforehand; one that was is remembered with it."""
    site, hooks_dir = ready(crun), ready(crun).hooks_dir / stage
    assert remember(crun, site, hooks_dir=hooks_dir).returncode == 0
    for word, path, verdict in (("mpich", "cold", "proved"), ("openmpi", "cold", "refused")):
        result, log = start(crun, site, *HELLO, options=[f"--annotation={ANNOTATION}={word}"], hooks_dir=hooks_dir)
        assert [(entry["path"], entry["verdict"]) for entry in log] == [(path, verdict)], result.stderr
        assert bool(result.returncode) == (verdict == "refused")
    assert_own(start(crun, site, *HELLO, options=[f"--annotation={ANNOTATION}=none"], hooks_dir=hooks_dir)[0])

    forget(site)
    volume = f"--volume={site.config_dir}:/data:ro"
    assert remember(crun, site, f"--annotation={ANNOTATION}=mpich", options=volume, hooks_dir=hooks_dir).returncode == 0
    for options, path in (([volume, f"--annotation={ANNOTATION}=mpich"], "warm"), ([volume], "cold"), ([], "cold")):
        result, log = start(crun, site, *HELLO, options=options, hooks_dir=hooks_dir)
        assert_site(result)
        assert [entry["path"] for entry in log] == [path], options


def test_what_changes_afterwards_is_seen(crun: Engine, ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """A plan remembered beforehand is as stale as any other when the site's configuration is another since."""
    site = ready(crun)
    assert remember(crun, site).returncode == 0
    text = (site.config_dir / "site.json").read_text()
    try:
        (site.config_dir / "site.json").write_text(text + "\n")
        assert [entry["path"] for entry in start(crun, site, *HELLO)[1]] == ["cold"]
    finally:
        (site.config_dir / "site.json").write_text(text)
        site.scan()


def test_what_cannot_be_remembered_is_said(crun: Engine, ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """No hook, a hook that refuses, a volume that is new for each container, an option that podman does not know: a sentence, and no
    container stays."""
    site = ready(crun)
    before = crun.podman("ps", "--all", "--quiet").stdout
    for told, code, words in (
        (remember(crun, site, hooks_dir=scratch), 2, "podman started no hook of this installation"),
        (remember(crun, site, options=f"--annotation={ANNOTATION}=openmpi"), 1, "openmpi is wanted; this site offers mpich"),
        (remember(crun, site, options="--volume=/data"), 2, "each start of "),
        (remember(crun, site, options="--no-such-option"), 2, "unknown flag: --no-such-option"),
    ):
        assert told.returncode == code, told.stdout + told.stderr
        assert words in told.stderr and "Traceback" not in told.stderr, told.stderr
    assert crun.podman("ps", "--all", "--quiet").stdout == before


def test_the_page(ready: ReadySite) -> None:  # noqa: F811
    """The line of docs/admin.md, and a start with the options that it names."""
    engine = Engine("crun", "root")
    site = ready(engine)
    (line,) = (block.text for block in blocks("docs/admin.md") if "--remember" in block.text)
    words = shlex.split(line.replace("IMAGE", engine.load("bookworm-mpich")).replace("PROGRAM", "mpihello"))
    place = words.index("--remember")
    done = site.command(*words[1:place], f"--hooks-dir={site.hooks_dir}", *words[place:])
    assert done.returncode == 0, done.stderr
    (options,) = (word.partition("=")[2] for word in words if word.startswith("--run-options="))
    result, log = start(engine, site, "mpihello", options=options.split())
    assert result.returncode == 0 and [entry["path"] for entry in log] == ["warm"]
