"""fastnn: hand-written CPU and CUDA kernels for neural network layers, drop-in for ``torch.nn``.

``fastnn.nn`` and ``fastnn.functional`` stand in for ``torch.nn`` and ``torch.nn.functional``: what fastnn
implements is its own, the rest is torch's. :func:`convert` turns the layers of an existing model into fastnn's
in place, :func:`revert` turns them back, and :func:`conversion_report` says what became of each. :func:`fuse` makes
one call of a batch norm and what stands around it, :func:`unfuse` undoes that, :func:`fusion_report` says where.
"""

from fastnn import _backend as _backend  # loads the compiled module, before anything that needs its ops
from fastnn import _cache as _cache
from fastnn import _fake as _fake
from fastnn import _fake_normalisation as _fake_normalisation
from fastnn import _fake_pooling as _fake_pooling
from fastnn import _fake_recurrence as _fake_recurrence
from fastnn import _vmap as _vmap
from fastnn import _vmap_normalisation as _vmap_normalisation
from fastnn import functional, nn
from fastnn._info import info
from fastnn._version import __version__
from fastnn.convert import ConversionReport, conversion_report, convert, revert
from fastnn.fuse import FusionReport, fuse, fusion_report, unfuse

__all__ = [
    "ConversionReport",
    "FusionReport",
    "__version__",
    "conversion_report",
    "convert",
    "functional",
    "fuse",
    "fusion_report",
    "info",
    "nn",
    "revert",
    "unfuse",
]
