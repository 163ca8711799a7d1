"""Each method as its paper's formula says it, step by step: for comparisons of values and times."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
