"""podman-hpc on the nodes of a cluster, as a site has it: installed by images.sh, configured by what docs/podman-hpc.md says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tests.bed import bed
from tests.bed.bed import BUILD, ROOT, RUNTIMES, Result, reference
from tests.bed.site import Site
from tests.bed.slurm import Slurm

PAGE = (ROOT / "docs/podman-hpc.md").read_text()
MODULES = sorted((ROOT / "packaging/podman-hpc/modules.d").glob("*.yaml"))
INSTALLED = BUILD / "podman-hpc"  # its virtual environment


def blocks(kind: str) -> list[str]:
    """What stands between ```KIND and ``` on the page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


class PodmanHpc:
    """For the user hpcuser, who has no other podman there: stores and configuration are podman-hpc's own, below the node's /tmp, and
    images come squashed from `squash_dir`, which the nodes share."""

    def __init__(self, slurm: Slurm, site: Site, folder: Path) -> None:
        self.slurm = slurm
        self.site = site
        self.account = bed.user_account()
        self._folder = folder
        self.squash_dir = folder / "scratch/storage"
        self._etc = folder / "etc"
        self._home = folder / "home"
        (folder / "etc/modules.d").mkdir(parents=True)
        for owned in (self._home, self.squash_dir.parent):
            owned.mkdir(parents=True)
            shutil.chown(owned, self.account.uid, self.account.gid)
        self._configure()

    def _configure(self) -> None:
        for runtime in RUNTIMES:
            text = (self.slurm.account(self.account).folder / "containers.conf").read_text()
            own = [line for line in text.splitlines() if not line.startswith("tmp_dir")]  # there is no XDG_RUNTIME_DIR to go with it
            (self._folder / f"{runtime}.conf").write_text("\n".join(own).replace('"crun"', f'"{runtime}"') + "\n")
        (install,) = blocks("sh install")
        folders = f"--config-dir {self.site.config_dir} --state-dir {self.site.state_dir} --cache-dir {self.site.cache_dir}"
        for theirs, ours in (("/usr/local/share/oci-hpc-hooks/hooks.d", str(self.site.hooks_dir)), ("/etc/podman_hpc", str(self._etc)),
                             ("oci-hpc-hooks register", f"oci-hpc-hooks {folders} register")):  # fmt: skip
            assert theirs in install
            install = install.replace(theirs, ours)
        bed.root_account().execute("bash", "-euc", install, cwd=str(ROOT), check=True)
        (settings,) = blocks("yaml")
        (self._etc / "podman_hpc.yaml").write_text(f"{settings}modules_dir: {self._etc}/modules.d\n")

    # -- use

    def environment(self, runtime: str = "crun") -> dict[str, str]:
        """What a user's session on a node has in its environment beside a cluster's own account."""
        return {
            "PATH": f"{INSTALLED}/bin:{self.account.environment()['PATH']}",
            "HOME": str(self._home),
            "CONTAINERS_CONF": str(self._folder / f"{runtime}.conf"),
            "STORAGE_DRIVER": "overlay",  # /etc/containers/storage.conf of other machines says so
            "PODMANHPC_CONFIG_FILE": str(self._etc / "podman_hpc.yaml"),
            "SQUASH_DIR": str(self.squash_dir),
        }

    def _session(self, runtime: str) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.environment(runtime).items()]
        return ["env", "--unset=XDG_RUNTIME_DIR", "--unset=XDG_CONFIG_HOME", *variables]

    def run(self, line: str, node: str = "", runtime: str = "crun", timeout: float = 60) -> Result:
        """A line for bash: srun and what it starts, or with a `node`, what runs there without Slurm."""
        words = [*self._session(runtime), "bash", "-c", line]
        if node:
            return self.slurm.inside(node, *words, account=self.account, timeout=timeout)
        try:
            return self.slurm.execute(*words, account=self.account, timeout=timeout)
        except subprocess.TimeoutExpired:
            self.tidy()
            raise

    def migrate(self, image: str) -> None:
        """Bring one of `IMAGES` to the squashed images, by the recipe of the page, on a node with an empty store."""
        rootfs = str(bed.IMAGES[f"{image}-nolabel"].tar)
        (containerfile,) = blocks("Dockerfile")
        label = containerfile.splitlines()[-1].replace("mpich", bed.IMAGES[image].labels["org.supercontainers.mpi"])
        context = self._folder / image
        context.mkdir()
        os.link(BUILD / "images" / rootfs, context / rootfs)
        (context / "Containerfile").write_text(f"FROM scratch\nADD {rootfs} /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n{label}\n")
        (squash,) = blocks("sh squash")
        done = self.run(f"cd {context} && {squash.replace('IMAGE', reference(image))}", "n1", timeout=180)
        if done.returncode != 0:
            raise RuntimeError(f"{done.stdout}{done.stderr}")

    def last(self, node: str, count: int) -> list[dict[str, str]]:
        """What the hook has written into the user's log on that node, the latest `count` starts."""
        log = self.slurm.inside(node, "tail", f"--lines={count}", f"/run/user/{self.account.uid}/oci-hpc-hooks/hooks.log").stdout
        return [json.loads(entry) for entry in log.splitlines()]

    # -- tidying up

    def containers(self) -> list[str]:
        """Containers that there are on the nodes, running or not, as ``NODE ID``."""
        store = f"/tmp/{self.account.uid}_hpc/storage/overlay-containers/containers.json"
        found = []
        for node in self.slurm.nodes:
            records = self.slurm.inside(node, "cat", store).stdout
            found += [f"{node} {record['id']}" for record in json.loads(records or "[]")]
        return found

    def tidy(self) -> None:
        """Remove every container of podman-hpc's on the nodes."""
        for node in {container.split()[0] for container in self.containers()}:
            self.run("podman-hpc rm --all --force --time 0", node)


def line(options: Sequence[str], image: str, command: Sequence[str], launcher: Optional[str] = None) -> str:
    """``[LAUNCHER] podman-hpc run OPTIONS IMAGE COMMAND``, for `PodmanHpc.run`."""
    return " ".join([*([launcher] if launcher else []), "podman-hpc run", *options, reference(image), *command])
