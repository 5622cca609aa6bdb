"""Files that others read at any time: replaced whole or not at all."""

from __future__ import annotations

import os
import tempfile
from typing import Optional, Tuple


def put(path: str, data: bytes, mode: int = 0o644, owner: Optional[Tuple[int, int]] = None) -> None:
    """Writes a file in its directory, which must be there, under a name that begins with a dot and has another ending, brings it to the
    disk, and gives it its name last (rename(2)). ``owner``: uid and gid, if they are not to be those of this process. Raises OSError."""
    fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            if owner is not None:
                os.fchown(fd, *owner)
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
