from helper.registry import Registry, import_all

DATASETS = Registry("data set")
import_all(__name__, __path__)
