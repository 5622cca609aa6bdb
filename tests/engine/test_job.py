"""What a container gets of a job: variables and directories of whoever starts it, and nothing else. No launcher is needed for that: its
variables are set by hand."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

IMAGE = "bookworm-mpich-nolabel"
AUTO = "--annotation=org.supercontainers.launcher=auto"
HOST = ("--net=host", "--ipc=host", "--pid=host")
RANK = {"PMIX_RANK": "3", "PMIX_NAMESPACE": "job.7", "PMIX_GDS_MODULE": "ds21,hash", "SLURM_JOB_ID": "7", "UCX_TLS": "tcp",
        "AWS_SECRET_ACCESS_KEY": "secret", "LD_PRELOAD_": "x", "SLURM_JWT": "secret"}
STAGES = ("", "podman")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A job's directory in a place that everybody may enter."""
    made = bed.scratch("job")
    yield made
    shutil.rmtree(made)


def job_directory(folder: Path, engine: Engine, owner: Optional[int] = None) -> Path:
    made = folder / "pmix.7.0"
    made.mkdir(mode=0o700)
    shutil.chown(made, engine.account.uid if owner is None else owner)
    (made / "dstore").write_text("of the server\n")
    (made / "dstore").chmod(0o644)
    return made


def variables(result: Result) -> Mapping[str, str]:
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def run(engine: Engine, site: Site, *command: str, env: Mapping[str, str], options: tuple[str, ...] = (AUTO, *HOST),
        stage: str = "podman") -> Result:
    return engine.run(IMAGE, *command, env=env, options=options, hooks_dir=site.hooks_dir / stage)


# ------------------------------------------------------------------------------------------------ variables


@three_engines
def test_the_jobs_variables_and_no_others(engine: Engine, site: Site) -> None:
    before = variables(run(engine, site, "env", env={}))
    found = variables(run(engine, site, "env", env=RANK))
    assert {name: value for name, value in found.items() if before.get(name) != value and name != "HOSTNAME"} == {
        "PMIX_RANK": "3", "PMIX_NAMESPACE": "job.7", "PMIX_GDS_MODULE": "ds21,hash", "SLURM_JOB_ID": "7", "PMIX_MCA_gds": "hash"}


def test_remembered_plans_hold_no_ranks_variables(crun: Engine, ready: ReadySite) -> None:
    site = ready(crun)
    for rank in ("3", "4"):
        assert variables(run(crun, site, "env", env={**RANK, "PMIX_RANK": rank}))["PMIX_RANK"] == rank


def test_the_user_wins_and_the_image_does_not(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    (scratch / "Containerfile").write_text(f"FROM {crun.load(IMAGE)}\nENV PMIX_RANK=9 SLURM_JOB_ID=9\n")
    built = crun.podman("build", "--quiet", "--pull=never", str(scratch), check=True).stdout.strip()
    options = (AUTO, *HOST, "--env=SLURM_JOB_ID=8")
    found = variables(crun.run(built, "env", env=RANK, options=options, hooks_dir=ready(crun).hooks_dir / "podman"))
    assert (found["PMIX_RANK"], found["SLURM_JOB_ID"]) == ("3", "8")
    crun.podman("rmi", "--force", built)


def test_each_start_has_its_own(crun: Engine, ready: ReadySite) -> None:
    """podman start gives the variables of the rank that starts, not of the one that created the container."""
    site, name = ready(crun), crun.new_name()
    hooks = ["--hooks-dir", str(site.hooks_dir / "podman")]
    crun.podman(*hooks, "create", "--name", name, AUTO, *HOST, crun.load(IMAGE), "env", env=RANK, check=True)
    for rank in ("4", "5"):
        started = crun.podman(*hooks, "start", "--attach", name, env={**RANK, "PMIX_RANK": rank})
        assert variables(started)["PMIX_RANK"] == rank
    crun.podman("rm", "--force", name, check=True)


def test_a_container_for_many_ranks_has_none_of_theirs(crun: Engine, ready: ReadySite, folder: Path) -> None:
    site, made = ready(crun), job_directory(folder, crun)
    options = (AUTO, *HOST, "--annotation=org.supercontainers.launcher.scope=node")
    result = run(crun, site, "sh", "-c", f"env; cat {made}/dstore", env={**RANK, "PMIX_SERVER_TMPDIR": str(made)}, options=options)
    assert "of the server" in result.stdout and not {*RANK} & {*variables(result)}


def test_nothing_of_a_service(ready: ReadySite) -> None:
    """Under a podman service the parent's environment is the daemon's."""
    engine = Engine("crun", "root")
    site = ready(engine)
    socket = bed.RUN / "service.sock"
    command = ["podman", "--runtime", "crun", "--hooks-dir", str(site.hooks_dir / "podman"), "system", "service", "--time=0",
               f"unix://{socket}"]
    with subprocess.Popen(command, env={**engine.account.environment(), **RANK}, stderr=subprocess.DEVNULL) as service:
        try:
            deadline = time.monotonic() + 20
            while not socket.is_socket():
                assert service.poll() is None and time.monotonic() < deadline, "podman serves no socket"
                time.sleep(0.05)
            image, name = engine.load(IMAGE), engine.new_name()
            done = engine.account.execute("podman", "--remote", "--url", f"unix://{socket}", "run", "--rm", "--name", name, AUTO, *HOST,
                                          "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", image, "env", env=RANK)
        finally:
            service.terminate()
            service.wait(20)
            socket.unlink(missing_ok=True)
    assert not {*RANK} & {*variables(done)}
    (entry,) = json.loads(site.last("--json", "-n", "1").stdout)["entries"]
    assert any("runs as a service" in finding["what"] for finding in entry["findings"])


# ------------------------------------------------------------------------------------------------ directories


def look(made: Path) -> tuple[str, ...]:
    return "sh", "-c", f"cat {made}/dstore && echo new >{made}/new && grep ' {made} ' /proc/self/mountinfo | cut -d' ' -f5,6"


def with_directory(engine: Engine, site: Site, made: Path, stage: str, *more: str, command: tuple[str, ...] = ()) -> Result:
    job = {**RANK, "PMIX_SERVER_TMPDIR": f"{made}/"}
    if engine.user == "rootless":
        more = (*more, "--annotation=org.supercontainers.mpi=none")
    passed = [f"--env={name}={value}" for name, value in job.items()] if not stage else []
    return run(engine, site, *(command or look(made)), env=job, options=(AUTO, *HOST, *passed, *more), stage=stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=" ".join)
@three_engines
def test_the_jobs_directory(engine: Engine, site: Site, folder: Path, stage: str, options: tuple[str, ...]) -> None:
    made = job_directory(folder, engine)
    result = with_directory(engine, site, made, stage, *options)
    assert result.returncode == 0, result.stderr
    # crun 1.8 leaves other options of a writable bind mount out where the container has a user namespace of its own; 1.21 does not.
    left_out = (engine.runtime, engine.user, stage) == ("crun", "keep-id", "podman") and bed.version("crun") < (1, 21)
    options_there = "rw" if left_out else "rw,nosuid,nodev"
    assert result.stdout.startswith(f"of the server\n{made} {options_there},relatime"), result.stdout
    assert (made / "new").read_text() == "new\n"


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_user_has_mounted_already(crun: Engine, ready: ReadySite, folder: Path, stage: str) -> None:
    made = job_directory(folder, crun)
    result = with_directory(crun, ready(crun), made, stage, f"--volume={folder}:{folder}", command=("sh", "-c", f"cat {made}/dstore; grep "
                                                                                                 f"-c ' {made} ' /proc/self/mountinfo"))
    assert result.stdout.splitlines() == ["of the server", "0"], result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_created_in_a_users_volume(crun: Engine, ready: ReadySite, folder: Path, scratch: Path, stage: str) -> None:
    made = job_directory(folder, crun)
    scratch.chmod(0o777)
    result = with_directory(crun, ready(crun), made, stage, f"--volume={scratch}:{folder}", command=("true",))
    assert list(scratch.iterdir()) == []
    assert result.returncode == 0 and last(ready(crun))["verdict"] == "nothing"  # a default or auto is never refused
    named = "--annotation=org.supercontainers.launcher=pmix"
    passed = [f"--env={name}={value}" for name, value in {**RANK, "PMIX_SERVER_TMPDIR": str(made)}.items()] if not stage else []
    result = run(crun, ready(crun), "true", env={**RANK, "PMIX_SERVER_TMPDIR": str(made)}, stage=stage,
                 options=(named, *HOST, *passed, f"--volume={scratch}:{folder}", "--user=0"))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_somebody_elses_directory_stays_outside(ready: ReadySite, folder: Path, stage: str) -> None:
    engine = Engine("crun", "keep-id")
    made = job_directory(folder, engine, owner=0)
    made.chmod(0o755)
    result = with_directory(engine, ready(engine), made, stage, command=("cat", f"{made}/dstore"))
    assert result.returncode != 0 and "of the server" not in result.stdout
    assert any(finding["code"] == "job-directory" and "belongs to uid" in finding["what"] for finding in last(ready(engine))["findings"])


def test_a_directory_that_the_image_names_stays_outside(ready: ReadySite, folder: Path, scratch: Path) -> None:
    """ENV of an image is its author's word, at the stage where the container's environment is all there is to see."""
    engine = Engine("crun", "root")
    made = job_directory(folder, engine)
    (scratch / "Containerfile").write_text(f"FROM {engine.load(IMAGE)}\nENV PMIX_RANK=0 PMIX_SERVER_TMPDIR={made}\n")
    built = engine.podman("build", "--quiet", "--pull=never", str(scratch), check=True).stdout.strip()
    for stage in STAGES:
        result = engine.run(built, "cat", f"{made}/dstore", options=[AUTO, *HOST], hooks_dir=ready(engine).hooks_dir / stage)
        assert result.returncode != 0 and "of the server" not in result.stdout
    engine.podman("rmi", "--force", built)


def last(site: Site) -> Any:
    return json.loads(site.last("--json", "-n", "1").stdout)["entries"][0]
