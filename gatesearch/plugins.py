"""Plugins: modules that add data sets, kinds of task, heads, backbones, methods and weightings.

A plugin is a module with a function `register(registry)`, which calls methods of `Registry`. It is
loaded if its distribution names it as an entry point of the group `gatesearch.plugins`, or if the
user names it by `--plugin FILE.py|MODULE`. Nothing else is loaded: no file that lies in the folder
of a study or of a store runs by itself.

The tables are imported by name, when a plugin adds to them: this module is below all of them.
"""

import hashlib
import importlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatesearch.checksums import with_checksum, without_checksum
from gatesearch.errors import UsageError, one_line, shell_command
from gatesearch.files import MIB, FileRefusedError, read_bytes, read_json, write_atomic

if TYPE_CHECKING:
    from torch import nn

    from gatesearch.datasets import Dataset
    from gatesearch.methods import Method
    from gatesearch.models.graph import Graph
    from gatesearch.study import Study
    from gatesearch.tasks import Task
    from gatesearch.training.weightings import Entry

GROUP = "gatesearch.plugins"
# The plugins with which a store was begun.
FILE = "plugins.json"
BUILT_IN = "gatesearch"

_LARGEST_FILE = MIB
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,99}")
# What can be added -> module and name of its table.
_TABLES = {
    "data set": ("gatesearch.datasets", "DATASETS"),
    "kind": ("gatesearch.tasks", "TASKS"),
    "head": ("gatesearch.models.heads", "HEADS"),
    "backbone": ("gatesearch.models.backbones", "BACKBONES"),
    "module": ("gatesearch.models.imported.sources", "REGISTERED"),
    "method": ("gatesearch.methods", "METHODS"),
    "weighting": ("gatesearch.training.weightings", "WEIGHTINGS"),
}


@dataclass(frozen=True)
class Plugin:
    """A plugin that was loaded.

    Attributes:
        name: Name of its entry point, module, or file without `.py`.
        place: The file's path, or the module's name.
        version: Version of its distribution or module; empty where there is none.
        sha256: SHA-256 of the file; empty for a module.
    """

    name: str
    place: str
    version: str = ""
    sha256: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file rather than a module that can be imported."""
        return bool(self.sha256)

    def __str__(self) -> str:
        said = [self.version, self.sha256[:12]]
        return " ".join([self.name, *filter(None, said)])


class Registry:
    """What a plugin adds; a plugin's function `register` gets one.

    All is added to the tables once `register` has returned.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, object]] = []

    def add_dataset(self, dataset: "Dataset") -> None:
        """Add a data set, under its name."""
        self.entries.append(("data set", dataset.name, dataset))

    def add_kind(self, name: str, kind: "type[Task]") -> None:
        """Add a kind of task."""
        self.entries.append(("kind", name, kind))

    def add_head(self, name: str, build: "Callable[..., nn.Module]") -> None:
        """Add a head: (channels of the last map, inner channels, outputs) -> module.

        If `build` has an attribute `reads_stages` that is True, as a class may, its first argument
        is a `gatesearch.models.heads.Feature` for each map, and the head is called with all maps.
        """
        self.entries.append(("head", name, build))

    def add_backbone(self, name: str, build: "Callable[..., Graph]") -> None:
        """Add a backbone: a function that builds its graph."""
        self.entries.append(("backbone", name, build))

    def add_module(self, name: str, build: "Callable[[], nn.Module]") -> None:
        """Add a backbone that is imported from a module; see `gatesearch.register_backbone`."""
        self.entries.append(("module", name, build))

    def add_method(self, method: "Method[Any]") -> None:
        """Add a method of sharing, under its name."""
        self.entries.append(("method", method.name, method))

    def add_weighting(self, name: str, entry: "Entry") -> None:
        """Add a way to balance tasks."""
        self.entries.append(("weighting", name, entry))


_loaded: dict[str, Plugin] = {}  # by place
_origins: dict[tuple[str, str], Plugin] = {}  # (what was added, its name) -> by which plugin


def load_plugins(given: Sequence[str] = (), *, installed: bool = True) -> None:
    """Load plugins that are not loaded yet.

    Args:
        given: Files that end in `.py`, or names of modules.
        installed: Whether to load those of installed distributions too.

    Raises:
        UsageError: One cannot be loaded, or adds a name that is there already. Nothing of it is
            added.
    """
    if installed:
        from importlib.metadata import entry_points

        for point in entry_points(group=GROUP):
            version = point.dist.version if point.dist is not None else ""
            _load_module(point.module, name=point.name, version=version)
    for place in given:
        if place.endswith(".py"):
            _load_file(Path(place))
        else:
            _load_module(place, name=place)


def load_again(plugins: Iterable[Plugin]) -> None:
    """Load the plugins that another process had loaded, in a worker of it.

    Raises:
        UsageError: One cannot be loaded here, or its file has changed.
    """
    for plugin in plugins:
        if plugin.is_file:
            _load_file(Path(plugin.place), expected=plugin.sha256)
        else:
            _load_module(plugin.place, name=plugin.name, version=plugin.version)


def loaded_plugins() -> tuple[Plugin, ...]:
    """List the plugins that this process has loaded."""
    return tuple(_loaded.values())


def origin_of(what: str, name: str) -> str:
    """Name the plugin that added an entry to a table, or `gatesearch`.

    Args:
        what: `data set`, `kind`, `head`, `backbone`, `module`, `method` or `weighting`.
        name: The entry's name.
    """
    plugin = _origins.get((what, name))
    return BUILT_IN if plugin is None else plugin.name


def used_by(study: "Study") -> tuple[Plugin, ...]:
    """List the loaded plugins whose entries a study names."""
    names: dict[str, set[str]] = {
        "data set": {source.data.dataset for source in study.sources},
        "kind": {task.kind for task in study.tasks.values()},
        "head": {study.model.head, *(task.head for task in study.tasks.values())},
        "backbone": {study.model.backbone},
        "module": {study.model.backbone},
        "method": {*study.methods, *study.tune, *study.options},
        "weighting": {*study.weightings, *study.search.weighting, *study.balance},
    }
    used = [plugin for (what, name), plugin in _origins.items() if name in names[what]]
    return tuple(dict.fromkeys(used))


def keep_plugins(folder: Path, study: "Study") -> list[str]:
    """Note in a store's folder which plugins its study uses, beside those noted before.

    Returns:
        A warning for each plugin that has changed since it was noted.

    Raises:
        OSError: The folder cannot be written.
        UsageError: The note is damaged.
    """
    noted, warnings = {plugin.name: plugin for plugin in _noted(folder)}, []
    fresh = {plugin.name: plugin for plugin in used_by(study)}
    for name, plugin in fresh.items():
        before = noted.get(name, plugin)
        if (before.version, before.sha256) != (plugin.version, plugin.sha256):
            warnings.append(
                f"the plugin {before} has changed since the store in {folder} was begun, and is "
                f"{plugin} now; where that changes results, begin another store with --out"
            )
    if fresh and noted | fresh != noted:
        table = {"plugins": [asdict(plugin) for plugin in (noted | fresh).values()]}
        write_atomic(folder / FILE, json.dumps(with_checksum(table), indent=1).encode())
    return warnings


def check_plugins(folder: Path) -> None:
    """Refuse a store whose plugins are not loaded.

    Args:
        folder: The store's folder; it may not exist.

    Raises:
        UsageError: One is not loaded, or the note in the folder is damaged; says the cure.
    """
    names = {plugin.name for plugin in _loaded.values()}
    missing = [plugin for plugin in _noted(folder) if plugin.name not in names]
    if missing:
        options = [word for plugin in missing for word in ("--plugin", plugin.place)]
        raise UsageError(
            f"the store in {folder} was made with the plugin "
            f"{' and '.join(str(plugin) for plugin in missing)}, which is not loaded; name it "
            f"again: {shell_command(*options)}, or install it"
        )


def _noted(folder: Path) -> list[Plugin]:
    path = folder / FILE
    try:
        table = without_checksum(read_json(path, dict[str, Any], limit=MIB))
        return [Plugin(**plugin) for plugin in table["plugins"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, KeyError, FileRefusedError) as error:
        raise UsageError(f"{path} is damaged ({one_line(error)}); move it away") from error


def _load_file(path: Path, *, expected: str = "") -> None:
    place = str(path.absolute())
    if place in _loaded:
        return
    try:
        source = read_bytes(path.resolve(), limit=_LARGEST_FILE)
    except (OSError, FileRefusedError) as error:
        fault = error.fault if isinstance(error, FileRefusedError) else error.strerror
        raise UsageError(
            f"plugin {path.stem}: {path} cannot be read ({fault}); name its file by --plugin"
        ) from error
    sha256 = hashlib.sha256(source).hexdigest()
    if expected not in ("", sha256):
        raise UsageError(
            f"plugin {path.stem}: {path} has changed since the run was begun: it must have the "
            f"sha256 {expected[:12]}, found {sha256[:12]}; start the run again"
        )
    module = types.ModuleType("gatesearch_plugin_" + re.sub(r"\W", "_", path.stem))
    module.__file__ = place
    plugin = Plugin(path.stem, place, sha256=sha256)
    _claim(plugin)
    # Registered before it runs, as dataclasses look their module up; other processes find it too.
    sys.modules[module.__name__] = module

    def run() -> types.ModuleType:
        # Nothing is compiled into a folder beside the file, which may be another user's.
        exec(compile(source, place, "exec"), module.__dict__)
        return module

    try:
        version = _register(plugin, run)
    except UsageError:
        del sys.modules[module.__name__]
        raise
    _loaded[place] = replace(plugin, version=version)


def _load_module(module: str, *, name: str, version: str = "") -> None:
    if module in _loaded:
        return
    plugin = Plugin(name, module, version)
    _claim(plugin)
    found = _register(plugin, lambda: importlib.import_module(module))
    _loaded[module] = replace(plugin, version=version or found)


def _claim(plugin: Plugin) -> None:
    for other in _loaded.values():
        if other.name == plugin.name:
            raise UsageError(
                f"plugins must differ in their names, found {plugin.name} at {other.place} and at "
                f"{plugin.place}; rename one, or leave it out"
            )


def _register(plugin: Plugin, run: Callable[[], types.ModuleType]) -> str:
    """Run a plugin's module, and add to the tables what it registers.

    Returns:
        The module's `__version__`; empty without one.

    Raises:
        UsageError: It cannot be run, or adds a name that is there already.
    """
    registry = Registry()
    try:
        module = run()
        module.register(registry)
    # Whatever a user's code raises, `sys.exit` too.
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"plugin {plugin.name} ({plugin.place}) cannot be loaded: {type(error).__name__}: "
            f"{one_line(error)}{_line_of(error, plugin.place)}; mend it, or leave it out"
        ) from error
    tables = {what: getattr(importlib.import_module(m), t) for what, (m, t) in _TABLES.items()}
    fresh: set[tuple[str, str]] = set()
    for what, name, _ in registry.entries:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"plugin {plugin.name} ({plugin.place}): the name of a {what} must be of letters, "
                f"digits, '-' and '_', found {name!r}"
            )
        if name in tables[what] or (what, name) in fresh:
            owner = _origins.get((what, name), plugin if (what, name) in fresh else None)
            place = BUILT_IN if owner is None else f"plugin {owner.name} ({owner.place})"
            raise UsageError(
                f"plugin {plugin.name} ({plugin.place}) adds the {what} '{name}', which is there "
                f"already, from {place}; rename one"
            )
        fresh.add((what, name))
    for what, name, entry in registry.entries:
        tables[what][name] = entry
    for key in fresh:
        _origins[key] = plugin
    version = getattr(module, "__version__", "")
    return version if isinstance(version, str) else ""


def _line_of(error: BaseException, place: str) -> str:
    """Say the line of a file at which an error arose; nothing where it arose elsewhere."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.lineno else ""
    traceback, line = error.__traceback__, 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == place:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" (line {line})" if line else ""
