"""A hook's executable, with the light modules in it as byte-code.

It is one file: a first line for the kernel, some lines of Python, and then the bytes of :func:`byte_code`. The first line gives the
interpreter a command (``#!PYTHON -IScimport sys;…``: all that follows the interpreter's name is one argument) and not a script, which
would be read as text to its end; the command executes the lines, and these hand the bytes to :mod:`oci_hpc_hooks.unpack`. So nothing has
to be trusted, or can be missing, but the file that the engine was told to start. The bytes count only for the kind of interpreter that
made them (its magic number), whole (checksums), and each module only while its source is the one that it was made from. In every other
case the package is imported as it lies on disk, and the hook takes a tenth longer until it is registered again.

Which modules are light is listed nowhere: those that warm imports, inside functions too, as far as their docstrings say so.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import re
from binascii import crc32
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import CodeType
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import container

#: What every start imports.
START = "oci_hpc_hooks.warm"
#: What is imported where there is something to do, and at podman's own stage.
REPLAY = ("oci_hpc_hooks.replay", "oci_hpc_hooks.wireup")
PRECREATE = (*REPLAY, "oci_hpc_hooks.precreate")
PACKAGE = Path(__file__).resolve().parent

#: Bytes of a script's first line that the kernel reads (BINPRM_BUF_SIZE, linux/binfmts.h), its end included.
FIRST_LINE = 256
_FIRST = '#!{python} -IScimport sys;f=open(sys.argv[1],"rb",0);exec(f.read({size:5}))\n'

_PACKED = """\
# Written by oci-hpc-hooks register. After these lines comes byte-code, used only if it is whole, of this very interpreter's kind, and made
# from the modules as they are now. How and why: oci_hpc_hooks/pack.py.
import gc
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import crc32
import marshal

gc.disable()  # nothing lives long enough to be collected
code = f.read({length})
if MAGIC_NUMBER == {magic!r} and crc32(code) == {checksum}:
    unpack, *packed = marshal.loads(code)
    del code  # its memory serves for what comes
    exec(unpack)
    install(*packed, f)
"""

#: An interpreter with a long name leaves no room for the command: then this is a script, and all is imported from the package.
_PLAIN = """\
# Written by oci-hpc-hooks register.
import sys
"""

_START = """\
sys.path += {path!r}  # -S leaves site-packages off the path and saves its start; so the directories are named here

try:
    from oci_hpc_hooks.warm import main
except Exception as error:
    sys.exit(f"oci-hpc-hooks: its package cannot be loaded: {{error}}. Site admin: look whether all of it can be read, and whether this "
             "node has memory and descriptors left.")
main({stage!r}, config={config!r}, state={state!r}, cache={cache!r}, log={log!r})
"""


def executable(python: str, path: Sequence[str], stage: str, config: str, state: str, cache: str, log: str, *, root: str = "") -> bytes:
    """The file that the runtime starts for this stage. ``root`` is left off the names of our modules: the folder in which a package is
    made, whose files lie elsewhere once it is installed. Raises ConfigError if no first line can name the interpreter."""
    start = _START.format(path=list(path), stage=stage, config=config, state=state, cache=cache, log=log)
    plain = (first_line(python) + _PLAIN + start).encode()
    code, rest = byte_code(stage, root)
    text = _PACKED.format(length=len(code), magic=importlib.util.MAGIC_NUMBER, checksum=crc32(code)) + start
    packed = joined(python, text.encode(), code + rest)
    return packed if packed.index(b"\n") < FIRST_LINE else plain


def first_line(python: str) -> str:
    """That of an isolated script. Raises ConfigError if it cannot name the interpreter."""
    line = f"#!{python} -IS\n"
    if len(line.encode()) > FIRST_LINE or any(blank in python for blank in " \t\n"):
        raise ConfigError(
            f"{python} cannot stand in the first line of a script: it has blanks or more than {FIRST_LINE - 7} bytes",
            remedy="make the virtual environment at another place",
            who="user",
        )
    return line


def joined(python: str, text: bytes, code: bytes) -> bytes:
    """First line, text and byte-code; the first line says how long it is together with the text."""
    size = len(_FIRST.format(python=python, size=0).encode()) + len(text)
    return _FIRST.format(python=python, size=size).encode() + text + code


def places(data: bytes) -> Tuple[str, ...]:
    """Configuration, state, cache and log that an executable goes by, in this order; () of one that does not name them."""
    found = re.search(rb"^main\('\w+', config=.*, state=.*, cache=.*, log=.*\)$", data, re.MULTILINE)
    try:
        call = ast.parse(found[0].decode(), mode="eval").body if found else None
        return tuple(str(ast.literal_eval(keyword.value)) for keyword in call.keywords) if isinstance(call, ast.Call) else ()
    except (SyntaxError, ValueError):
        return ()


def taken_apart(data: bytes) -> Tuple[bytes, bytes]:
    """Text and byte-code of an executable with both."""
    first, _, rest = data.partition(b"\n")
    size = int(first.rpartition(b"(")[2].rstrip(b")")) - len(first) - 1
    return rest[:size], rest[size:]


def outdated(data: bytes) -> str:
    """Why this executable imports modules from the package instead of taking those that are packed in it; empty if it does not, and for
    one that has none. For executables that only root can have written, since marshal believes what it reads. The interpreter that
    asks must be the one that the first line names."""
    head = re.search(rb"code = f\.read\((\d+)\)\nif MAGIC_NUMBER == (b'.*'|b\".*\") and crc32\(code\) == (\d+):", data[:FIRST_LINE + 4096])
    if head is None:
        return ""
    code = taken_apart(data)[1][:int(head[1])]
    if ast.literal_eval(head[2].decode()) != importlib.util.MAGIC_NUMBER:
        return "it was made for another release of Python"
    if crc32(code) != int(head[3]):
        return "it is damaged"
    for file, mtime, size, *_ in marshal.loads(code)[1].values():
        try:
            status = Path(file).stat()
        except OSError as error:
            return f"{file}: {error.strerror}"
        if (int(status.st_mtime), status.st_size) != (mtime, size):
            return f"{file} has changed since"
    return ""


def byte_code(stage: str, root: str = "") -> Tuple[bytes, bytes]:
    """What :func:`oci_hpc_hooks.unpack.install` is given: first what every start needs, then, in two parts, the code of what a replay at
    this stage needs, and of the other modules."""
    sources = {name: source._replace(file=source.file[len(root):]) for name, source in light_modules().items()}
    modules = {}
    extensions: Dict[str, str] = {}
    for name, source in sources.items():
        extensions.update(source.extensions)
        modules[name] = (source.file, source.mtime, source.size, source.is_package, (*source.extensions, *source.needs))
    code = {name: _compiled(source) for name, source in sources.items()}
    always = {name: code.pop(name) for name in _closure(START, sources)}
    starts = PRECREATE if stage == container.PRECREATE else REPLAY
    replayed = [name for start in starts for name in _closure(start, sources) if name in code]
    parts = [marshal.dumps({name: code.pop(name) for name in dict.fromkeys(replayed)}), marshal.dumps(code)]
    first = _source("oci_hpc_hooks.unpack")
    unpack = _compiled(first._replace(file=first.file[len(root):]))
    return marshal.dumps((unpack, modules, extensions, always, [(len(part), crc32(part)) for part in parts])), b"".join(parts)


def _closure(name: str, sources: Mapping[str, Source]) -> Dict[str, None]:
    """A module and all that its import brings with it."""
    found = dict.fromkeys([name])
    for need in sources[name].needs:
        found.update(_closure(need, sources))
    return found


class Source(NamedTuple):
    """One module of ours; ``needs`` is what of ours it imports at its top, ``imports`` what its functions do. What only a type checker
    imports is under an ``if``, and is neither. ``extensions`` of the interpreter, with their files, are imported at its top too."""

    file: str
    mtime: int
    size: int
    tree: ast.Module
    is_package: bool
    needs: Tuple[str, ...]
    imports: Tuple[str, ...]
    extensions: Dict[str, str]


def light_modules() -> Dict[str, Source]:
    """What a hook may import on its warm path, by name."""
    found: Dict[str, Source] = {}
    todo = [START]
    while todo:
        name = todo.pop()
        if name not in found:
            source = _source(name)
            if source.is_package or "light module" in (ast.get_docstring(source.tree) or "").lower():
                found[name] = source
                todo += [*source.needs, *source.imports]
    return dict(sorted(found.items()))


def _source(name: str) -> Source:
    path = _file(name)
    status = path.stat()  # before it is read: what changes in between is stale
    tree = ast.parse(path.read_bytes(), str(path))
    needs = dict.fromkeys([*_parents(name), *filter(_is_ours, _imports(tree.body))])
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    later = dict.fromkeys([other for function in functions for other in _imports(ast.walk(function)) if _is_ours(other)])
    specs = [importlib.util.find_spec(other) for other in _imports(tree.body) if not _is_ours(other)]
    extensions = {spec.name: spec.origin for spec in specs if spec and isinstance(spec.loader, ExtensionFileLoader) and spec.origin}
    return Source(str(path), int(status.st_mtime), status.st_size, tree, path.name == "__init__.py", tuple(needs), tuple(later), extensions)


def _file(name: str) -> Path:
    path = PACKAGE.parent / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parents(name: str) -> List[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What is imported by one of these nodes, of ours with the packages that it lies in."""
    for node in nodes:
        names: List[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _is_ours(name) else node.module for name in whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            yield from _parents(name)
            yield name


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE.name and _file(name).is_file()


def _compiled(source: Source) -> CodeType:
    """Its code, without all that no hook looks at: docstrings, ``from __future__ import`` (an import at each start), annotations, and
    the tables of line numbers. Together they are a third of the bytes."""
    body = [node for node in source.tree.body if not isinstance(node, ast.ImportFrom) or node.module != "__future__"]
    tree = _Unannotated().visit(ast.Module(body, []))
    return _without_lines(compile(ast.fix_missing_locations(tree), source.file, "exec", dont_inherit=True, optimize=2))


class _Unannotated(ast.NodeTransformer):
    """Takes annotations out of a syntax tree."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        return ast.Assign([node.target], node.value) if node.value else ast.Pass()


def _without_lines(code: CodeType) -> CodeType:
    table = {"co_linetable" if hasattr(code, "co_linetable") else "co_lnotab": b""}
    inner = tuple(_without_lines(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    return code.replace(co_consts=inner, **table)  # type: ignore[arg-type]
