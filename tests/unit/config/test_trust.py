"""Only root's files count. Needs root to make files of several owners, and an unprivileged user namespace for the overflow id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import trust

REPOSITORY = Path(trust.__file__).resolve().parents[2]
USER = 1000  # any user who is neither root nor the overflow id


def root_owns_new_files(tmp_path: Path) -> bool:
    return tmp_path.stat().st_uid == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is trusted, below the sticky /tmp."""
    if not root_owns_new_files(tmp_path):
        pytest.skip("files of root can only be made by root")
    made = tmp_path / "etc"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def site(folder: Path) -> Path:
    path = folder / "site.json"
    path.write_text("{}")
    path.chmod(0o644)
    return path


def test_file_of_root(site: Path) -> None:
    assert trust.read_trusted(str(site), 10) == b"{}"


def test_link_to_a_file_of_root(site: Path) -> None:
    link = site.parent / "link"
    link.symlink_to(site)
    assert trust.read_trusted(str(link), 10) == b"{}"


def test_link_to_a_file_that_is_not_root_s(site: Path) -> None:
    theirs = site.parent / "theirs"
    theirs.touch()
    os.chown(theirs, USER, USER)
    site.unlink()
    site.symlink_to(theirs)
    with pytest.raises(ConfigError, match=f"{theirs}, which {site} rests on, is owned by uid {USER} with mode 0644.*chown root {theirs}"):
        trust.read_trusted(str(site), 10)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o602])
def test_file_that_others_can_write(site: Path, mode: int) -> None:
    site.chmod(mode)
    with pytest.raises(ConfigError, match=f"{site} is owned by uid 0 with mode {mode:04o}, so others .* can write it.*chmod go-w {site}"):
        trust.read_trusted(str(site), 10)


@pytest.mark.parametrize(("mode", "believed"), [(0o2755, True), (0o2750, True), (0o2775, False), (0o2770, False)])
def test_setgid_tree(site: Path, folder: Path, mode: int, believed: bool) -> None:
    """A folder of a group whose files are the group's too: what counts is who can write, not whose group it is."""
    os.chown(folder, 0, USER)
    folder.chmod(mode)
    os.chown(site, 0, USER)
    if believed:
        assert trust.read_trusted(str(site), 10) == b"{}"
    else:
        with pytest.raises(ConfigError, match=f"{folder}, which {site} rests on, .* mode {mode:04o}, so others than root can write it"):
            trust.read_trusted(str(site), 10)


def test_root_squash(site: Path) -> None:
    """Root of a node is nobody on a file server: what is closed to it there is a sentence, never a guess. (In a process without the
    rights that let root read everything.)"""
    site.chmod(0o600)
    os.chown(site, USER, USER)
    code = f"""
import sys; sys.path[:0] = [{str(REPOSITORY)!r}]
from oci_hpc_hooks.linux import syscalls
from oci_hpc_hooks.inputs import trust
syscalls.give_up_privileges()
try:
    trust.read_trusted({str(site)!r}, 10)
except trust.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"{site} cannot be read: Permission denied. Site admin: make {site} readable.\n"


def test_file_of_another_user(site: Path) -> None:
    os.chown(site, USER, USER)
    with pytest.raises(ConfigError, match=f"Site admin: chown root {site}"):
        trust.read_trusted(str(site), 10)


def test_directory_of_another_user(site: Path) -> None:
    os.chown(site.parent, USER, 0)
    with pytest.raises(ConfigError, match=f"{site.parent}, which {site} rests on, is owned by uid {USER}"):
        trust.read_trusted(str(site), 10)


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_directory_that_others_can_write_sticky_or_not(site: Path, mode: int) -> None:
    site.parent.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod go-w {site.parent}"):
        trust.read_trusted(str(site), 10)


def test_directory_further_up(site: Path, folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    path = below / "x"
    path.touch()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=f"chmod go-w {folder}"):
        trust.read_trusted(str(path), 10)
    folder.chmod(0o1777)  # as /tmp: nobody else can replace root's "below" in it
    assert trust.read_trusted(str(path), 10) == b""
    os.chown(folder, USER, USER)  # but the owner of a sticky directory can
    with pytest.raises(ConfigError, match=f"chown root {folder}"):
        trust.read_trusted(str(path), 10)


def test_missing(folder: Path) -> None:
    with pytest.raises(trust.Missing, match=f"there is no file {folder}/site.json"):
        trust.read_trusted(f"{folder}/site.json", 10)
    (folder / "file").touch()
    with pytest.raises(trust.Missing):
        trust.read_trusted(f"{folder}/file/site.json", 10)


def test_dangling_link(folder: Path) -> None:
    (folder / "site.json").symlink_to("nowhere")
    with pytest.raises(trust.Missing):
        trust.read_trusted(f"{folder}/site.json", 10)


def test_loop(folder: Path) -> None:
    (folder / "site.json").symlink_to("site.json")
    with pytest.raises(ConfigError, match=r"cannot be read: Too many levels of symbolic links"):
        trust.read_trusted(f"{folder}/site.json", 10)


def test_what_is_no_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(ConfigError, match="is not a regular file"):
            trust.read_trusted(f"{folder}/{name}", 10)
    with pytest.raises(ConfigError, match="is not a regular file"):
        trust.read_trusted("/dev/zero", 10)


def test_size_is_bounded(site: Path) -> None:
    site.write_bytes(b"x" * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        trust.read_trusted(str(site), 10)
    site.write_bytes(b"x" * 10)
    assert len(trust.read_trusted(str(site), 10)) == 10


def test_any_file_of_anyone(tmp_path: Path) -> None:
    path = tmp_path / "draft.json"
    path.write_text("{}")
    path.chmod(0o666)
    assert trust.read_any(str(path), 10) == b"{}"
    with pytest.raises(ConfigError, match="larger than 1 bytes"):
        trust.read_any(str(path), 1)


# ------------------------------------------------------------------------------------------------------- user namespaces

READ = "import sys; from oci_hpc_hooks.inputs import trust; print(trust.read_trusted(sys.argv[1], 99, sys.argv[2:]).decode())"


def in_user_namespace(*arguments: str, mapped: bool = True, code: str = READ) -> subprocess.CompletedProcess[str]:
    """Reads as an ordinary user who is root in a namespace of his own, as a rootless container's hook is; unmapped: as nobody in it."""
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    command = [*drop, "unshare", "--user", *["--map-root-user"] * mapped, sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}, cwd="/")
    if "unshare" in result.stderr or "setpriv" in result.stderr:
        pytest.skip(f"no user namespace for an ordinary user here: {result.stderr.strip()}")
    return result


@pytest.fixture
def seen_by_all(site: Path) -> Path:
    """pytest's own folders are closed to other users."""
    for directory in site.parents:
        if directory.stat().st_mode & 0o005 != 0o005:
            directory.chmod(0o755)
    return site


def test_root_of_the_host_counts_below_a_fixed_directory(seen_by_all: Path) -> None:
    result = in_user_namespace(str(seen_by_all), str(seen_by_all.parent))
    assert result.stdout == "{}\n", result.stderr


@pytest.mark.parametrize("fixed", [[], ["/usr"], ["{}-other"], ["{}/../e"]])
def test_root_of_the_host_counts_nowhere_else(seen_by_all: Path, fixed: list[str]) -> None:
    result = in_user_namespace(str(seen_by_all), *[text.format(seen_by_all.parent) for text in fixed])
    assert "is owned by uid 65534" in result.stderr
    assert result.stdout == ""


def test_own_file_that_shows_the_overflow_id_does_not_count(seen_by_all: Path) -> None:
    fixed = str(seen_by_all.parent)
    assert in_user_namespace(str(seen_by_all), fixed, mapped=False).stdout == "{}\n"
    os.chown(seen_by_all, USER, USER)
    result = in_user_namespace(str(seen_by_all), fixed, mapped=False)
    assert result.stdout == ""
    assert f"{seen_by_all} is owned by uid 65534 with mode 0644, and only root's files are believed" in result.stderr


def test_own_file_counts_in_the_namespace(seen_by_all: Path) -> None:
    os.chown(seen_by_all, USER, USER)
    result = in_user_namespace(str(seen_by_all), str(seen_by_all.parent))
    assert result.stdout == "{}\n", result.stderr


def test_without_a_namespace_the_overflow_id_is_nobody(seen_by_all: Path) -> None:
    os.chown(seen_by_all, 65534, 65534)
    with pytest.raises(ConfigError, match="chown root"):
        trust.read_trusted(str(seen_by_all), 10, [str(seen_by_all.parent)])


def test_without_a_namespace_an_ordinary_user_does_not_believe_nobody(seen_by_all: Path) -> None:
    os.chown(seen_by_all, 65534, 65534)
    command = ["setpriv", f"--reuid={USER}", "--clear-groups", sys.executable, "-c", READ, str(seen_by_all), str(seen_by_all.parent)]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}, cwd="/")
    assert f"chown root {seen_by_all}" in result.stderr


def test_another_user_of_the_namespace_is_not_root_of_the_host(seen_by_all: Path) -> None:
    """Neither is root inside, and the reader cannot write the other one's file."""
    os.chown(seen_by_all, USER + 1, USER + 1)
    command = ["setpriv", f"--reuid={USER}", "--clear-groups", "unshare", "--user", "sh", "-c", 'echo; read go; exec "$@"', "sh"]
    command += [sys.executable, "-c", READ, str(seen_by_all), str(seen_by_all.parent)]
    pipe = subprocess.PIPE
    env = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env, cwd="/") as reader:
        assert reader.stdout is not None
        if not reader.stdout.readline():
            pytest.skip(f"no user namespace for an ordinary user here: {reader.communicate()[1].strip()}")
        Path(f"/proc/{reader.pid}/uid_map").write_text(f"5 {USER} 1\n7 {USER + 1} 1\n")
        _, says = reader.communicate("go\n")
    assert f"{seen_by_all} is owned by uid 7 with mode 0644" in says


def test_the_module_is_light() -> None:
    code = "import sys; before = set(sys.modules); import oci_hpc_hooks.inputs.trust; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}, check=True)
    new = {name for name in result.stdout.split() if not name.startswith("oci_hpc_hooks")}
    assert new <= {"__future__", "errno"}


RESOLVE = """
import sys
from oci_hpc_hooks.inputs import inventory, scan, site
etc, private = sys.argv[1:]
found = scan.scan(site.configuration(etc, fixed=[etc])).inventory
inventory.write(found, private, [private])
assert inventory.load(private, [private]) == found
print(found.site.unproved)
"""


def test_private_inventory_of_a_rootless_hook(seen_by_all: Path, tmp_path: Path) -> None:
    """What a hook does in the user's namespace when root's inventory is stale: root's configuration, the user's own directory."""
    (seen_by_all.parent / "site.json").write_text('{"version": 1, "profiles": [], "unproved": "refuse"}')
    private = tmp_path / "run"
    private.mkdir(mode=0o700)
    os.chown(private, USER, USER)
    result = in_user_namespace(str(seen_by_all.parent), str(private), code=RESOLVE)
    assert result.stdout == "refuse\n", result.stderr
    assert (private / "inventory.json").stat().st_uid == USER
