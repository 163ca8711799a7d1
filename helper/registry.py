"""Name -> object tables, filled by the files of a package as they are imported."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from helper.errors import UserError


class Registry:
    """Objects of one kind by name. `for name in registry` goes through the names in order.

    `check(name, entry)` is called before an entry is filed; what it raises refuses the entry.
    """

    def __init__(self, kind: str, check: Callable[[str, object], None] = lambda name, entry: None):
        self.kind, self._check, self._entries = kind, check, {}
        self.broken: dict[str, str] = {}  # files that could not be imported -> why

    def register(self, *names: str) -> Callable:
        """Decorator: file the decorated object under each of these names."""

        def add(entry):
            for name in names:
                if name in self._entries:
                    raise ValueError(f"two {self.kind}s are called {name!r}")
                self._check(name, entry)
            self._entries.update(dict.fromkeys(names, entry))
            return entry

        return add

    def import_all(self, package: str, path) -> None:
        """Import every file of a package, so that each can register itself."""
        for module in pkgutil.iter_modules(path):
            name = f"{package}.{module.name}"
            with self.noting_broken(f"{name.replace('.', '/')}.py"):
                importlib.import_module(name)

    @contextmanager
    def noting_broken(self, file: str) -> Iterator[None]:
        """Note in `broken` that a file cannot be imported, and go on."""
        try:
            yield
        except (Exception, SystemExit) as error:  # whatever somebody's file raises
            self.broken[file] = f"{type(error).__name__}: {error}"

    def __getitem__(self, name: str):
        if name not in self._entries:
            known = f"{self._hint(name)}; there are: {', '.join(self)}"
            raise UserError(f"no {self.kind} {name!r}{known}{self._broken()}")
        return self._entries[name]

    def canonical(self, name: str) -> str:
        """The first name of the entry called `name`."""
        entry = self[name]
        return next(known for known, other in self._entries.items() if other is entry)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def _hint(self, name: str) -> str:
        lower = {known.lower(): known for known in self._entries}
        close = difflib.get_close_matches(name.lower(), lower, n=1)
        return f" (did you mean {lower[close[0]]}?)" if close else ""

    def _broken(self) -> str:
        listed = "; ".join(f"{file} ({why})" for file, why in self.broken.items())
        return f"; and files that cannot be imported: {listed}" if listed else ""
