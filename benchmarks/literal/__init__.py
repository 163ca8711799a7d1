"""Each method as its paper's formula says it, step by step: to compare with, in value and cost."""

from helper.registry import import_all

import_all(__name__, __path__)
