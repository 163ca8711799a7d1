from dataset.base import DataSource
from helper.registry import Registry


def check_source(name: str, entry: object) -> None:
    """ValueError unless a data set has the attributes that its callers read."""
    if not (isinstance(entry, type) and issubclass(entry, DataSource)):
        raise ValueError(f"data set {name!r} is no subclass of dataset.base.DataSource")


DATASETS = Registry("data set", check_source)
DATASETS.import_all(__name__, __path__)
