"""Name -> object tables, filled by the files of a package as they are imported."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator

from helper.errors import UserError


class Registry:
    """Objects of one kind by name. `for name in registry` goes through the names in order."""

    def __init__(self, kind: str):
        self.kind, self._entries = kind, {}

    def register(self, *names: str) -> Callable:
        """Decorator: file the decorated object under each of these names."""

        def add(entry):
            for name in names:
                if name in self._entries:
                    raise ValueError(f"two {self.kind}s are called {name!r}")
                self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str):
        if name not in self._entries:
            raise UserError(
                f"no {self.kind} {name!r}{self._hint(name)}; there are: {', '.join(self)}"
            )
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def _hint(self, name: str) -> str:
        lower = {known.lower(): known for known in self._entries}
        close = difflib.get_close_matches(name.lower(), lower, n=1)
        return f" (did you mean {lower[close[0]]}?)" if close else ""


def import_all(package: str, path) -> None:
    """Import every module of a package, so that each can register itself."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
