"""Lets a CUDA build of torchvision be imported with a CPU build of torch.

Package indexes serve CUDA builds of torchvision even where torch is the CPU build. `pip check` finds nothing wrong, but
importing torchvision then fails with "operator torchvision::nms does not exist", and with it lightning, torchmetrics and
torch-fidelity. Declaring the two operators that torchvision expects of its compiled extension lets the import pass: all
that is written in Python (transforms, data sets, make_grid) works; the compiled operators do not.
A matching pair of builds never enters the branch. Every module that imports one of these packages imports this one first.
"""

import importlib.util
from pathlib import Path

import torch


def _torchvision_is_cuda_build() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    return "+cu" in (Path(spec.origin).parent / "version.py").read_text()


if torch.version.cuda is None and torch.version.hip is None and _torchvision_is_cuda_build():
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
