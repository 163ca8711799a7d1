"""torchvision, also where its compiled part does not fit the installed PyTorch.

The usual wheel is compiled for the CUDA build of PyTorch. Beside a CPU build its library cannot be
loaded, and `import torchvision` stops at the first operator that the library should have brought.
Data sets, transforms and models need none of them: here the operators are declared without an
implementation and the import is tried again. Where the import works, nothing is declared.
"""

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    _library = torch.library.Library("torchvision", "FRAGMENT")  # what it declares dies with it
    for _operator in _OPERATORS:
        _library.define(_operator)
    import torchvision

__all__ = ["torchvision"]
