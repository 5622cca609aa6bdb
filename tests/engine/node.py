"""A node of a test's own: this machine with folders over its /usr, /etc, /var and /opt in a mount namespace, so that commands can be typed
as documentation has them, with the paths of a real node."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from tests.bed import bed
from tests.bed.bed import Account, Result

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
UNCHANGED: Mapping[str, Optional[str]] = {}

#: What commands write goes into $NODE.usr and so on. What is below /opt already stays there: a checkout may have its build in it.
LAY_OVER = """\
for folder in usr etc var; do
    mount -t overlay -o "lowerdir=$NODE/$folder:/$folder,upperdir=$NODE.$folder,workdir=$NODE.$folder.work" overlay /$folder || exit
done
for folder in /opt/*/; do
    [ ! -d "$folder" ] || { mkdir -p "$NODE$folder" && mount --rbind "$folder" "$NODE$folder"; } || exit
done
"""


class Node:
    """`files` may have usr, etc, var and opt of this node's own; `opt` has folders of this machine that are elsewhere on the node, by
    their paths there, all below /opt."""

    def __init__(self, files: Path, opt: Mapping[str, Path]) -> None:
        self.files = files
        for name in ("usr", "etc", "var", "opt"):
            (files / name).mkdir(mode=0o755, parents=True, exist_ok=True)
            for kind in ("", ".work"):
                files.with_name(f"{files.name}.{name}{kind}").mkdir(mode=0o755)
        lines = [LAY_OVER]
        for place, source in opt.items():
            (files / place.lstrip("/")).mkdir(parents=True)
            lines.append(f"mount --rbind {shlex.quote(str(source))} {shlex.quote(f'{files}{place}')} || exit\n")
        self._script = "".join([*lines, 'mount --rbind "$NODE/opt" /opt && cd "$WHERE" && exec "$@"\n'])

    def run(self, *command: str, where: str = "/", env: Mapping[str, Optional[str]] = UNCHANGED, timeout: float = 120,
            account: Optional[Account] = None) -> Result:
        """As root or `account`, with the bed's stores. The bed's virtual environment is not in PATH: what runs is the node's. A variable
        that is None is not set."""
        bed.enter()
        who = account or bed.root_account()
        ours = {"PATH": PATH, "NODE": str(self.files), "WHERE": where, "PYTHONPATH": None}
        wanted = {**who.environment(), **ours, **env}
        environment = {name: value for name, value in wanted.items() if value is not None}
        become = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups"] if who.uid else []
        line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", self._script, "sh", *become, *command]
        with _namespaces_of_their_own(who):
            return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=environment, check=False)

    def typed(self, text: str, where: str = "/", env: Mapping[str, Optional[str]] = UNCHANGED, timeout: float = 120,
              account: Optional[Account] = None) -> Result:
        """Lines of a page, in a shell that ends with the first that fails."""
        return self.run("bash", "-euc", text, where=where, env=env, timeout=timeout, account=account)


@contextlib.contextmanager
def _namespaces_of_their_own(account: Account) -> Iterator[None]:
    """Rootless podman goes on in the mount namespace of the process that it left behind at its first start, and reads its configuration
    there: a later one that is in the node's would see the bed's /etc, and a later one of the bed the node's."""
    if account.uid:
        account.execute("podman", "system", "migrate", check=True)
    yield
    if account.uid:
        account.execute("podman", "system", "migrate", check=True)
