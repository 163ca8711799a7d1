from helper.registry import Registry

DATASETS = Registry("data set")
DATASETS.import_all(__name__, __path__)
