"""Finds the light modules in the bytes of the running executable (light module, and the first of all: it imports none of ours).

:mod:`oci_hpc_hooks.pack` put them there. One at a time, finding and reading them costs a third of what a hook needs beyond the bare
interpreter. A module counts only while its source is the one that was compiled, by mtime and size, as Python's own ``__pycache__`` has it.
Where it is not, the interpreter imports the source as ever: so what runs is always what lies in the package, packed or not.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec, _load_unlocked  # type: ignore[attr-defined]  # importlib.machinery would be one more
from _frozen_importlib_external import ExtensionFileLoader
from binascii import crc32
from marshal import loads
from posix import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, BinaryIO

    #: Source file, its mtime in seconds and its size; whether it is a package; what its import needs: modules of ours, and extensions.
    Module = tuple[str, int, int, bool, tuple[str, ...]]

New: Any = type(sys)


class Unpacker:
    """Finder and loader in one, to be the first of sys.meta_path.

    ``code`` has what every start needs, ``file`` the rest, in ``parts`` of so many bytes with such a checksum. ``extensions``: modules of
    the standard library that are files, and these; they would be searched for in one directory after the other.
    """

    def __init__(self, modules: dict[str, Module], extensions: dict[str, str], code: dict[str, CodeType], parts: list[tuple[int, int]],
                 file: BinaryIO) -> None:
        self.modules = modules
        self.extensions = extensions
        self.code = code
        self.parts = parts
        self.file = file
        self.unread = True
        self.rest: list[tuple[bytes, int]] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """importlib asks for each module that is not in sys.modules. None: another finder has to know it."""
        if name not in self.modules or not self.load(name):
            return None
        file, _, _, package, _ = self.modules[name]
        return ModuleSpec(name, self, origin=file, is_package=package)  # type: ignore[arg-type]  # no Loader by name

    def create_module(self, spec: Any) -> Any:
        return sys.modules[spec.name]

    def exec_module(self, module: object) -> None:
        """Done already."""

    def load(self, name: str) -> bool:
        """Executes a module, after those that it imports, so that it finds them in sys.modules and nobody has to search. False if it is
        not the one that was packed."""
        if name in sys.modules:
            return True
        file, mtime, size, package, needs = self.modules[name]
        try:
            now = stat(file)
        except OSError:
            return False
        if now[8] != mtime or now[6] != size:  # seconds: an archive keeps no more of a time
            return False
        code = self.code_of(name)
        if code is None:
            return False
        for need in needs:
            if need in self.extensions:
                self.load_extension(need)
            else:
                self.load(need)
        above, _, own = name.rpartition(".")
        module = New(name)
        module.__file__ = file
        module.__package__ = name if package else above
        if package:
            module.__path__ = [file.rpartition("/")[0]]
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        if above in sys.modules:
            setattr(sys.modules[above], own, module)
        return True

    def code_of(self, name: str) -> Any:
        """Its code, None if the file that is running has been damaged."""
        if self.unread and name not in self.code:
            self.unread = False
            try:  # all of it: the hook closes every descriptor before it joins a container
                self.rest = [(self.file.read(length), checksum) for length, checksum in self.parts]
                self.file.close()
            except (OSError, ValueError):  # it is closed, as all descriptors are by then
                self.rest = []
        while self.rest and name not in self.code:
            part, checksum = self.rest.pop(0)
            if crc32(part) == checksum:
                self.code.update(loads(part))
        return self.code.get(name)

    def load_extension(self, name: str) -> None:
        if name not in sys.modules:
            path = self.extensions[name]
            try:
                _load_unlocked(ModuleSpec(name, ExtensionFileLoader(name, path), origin=path))
            except ImportError:
                pass  # it has moved; whoever imports it has it searched for


def install(*packed: Any) -> None:
    sys.meta_path.insert(0, Unpacker(*packed))
