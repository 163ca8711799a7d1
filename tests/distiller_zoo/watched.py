"""Features that record who reads them."""

from typing import Any

from models.base import Features


class Watched(Features):
    """The features of one pass; `seen` has the name of each that was read."""

    def __init__(self, own: Features):
        self.__dict__.update(own=own, seen=set())
        if own.strong:
            self.__dict__["strong"] = Watched(own.strong)
            self.strong.__dict__["seen"] = self.seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.own, name)
        self.seen.add(name)
        return value
