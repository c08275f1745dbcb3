"""Batch normalisation over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastnn import functional
from fastnn.nn.batchnorm import normalise


class SyncBatchNorm(torch.nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm``, computed by :func:`fastnn.functional.sync_batch_norm`; on the CPU too.

    It differs from torch's in that tensors may be on the CPU, with a process group that has ``gloo``. In evaluation,
    in a single process, and where ``torch.distributed`` has not been initialised, it is batch normalisation.
    ``skip_nonfinite_stats``, an attribute to be set, is that of the function.

    Shape:
        ``[N, C]`` or ``[N, C, ...]`` with up to three spatial sizes, to the same; N may differ between processes.
    """

    skip_nonfinite_stats: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        self._check_non_zero_input_channels(input)
        if not self._synchronises():
            return normalise(self, functional.batch_norm, input)
        self._check_input_dim(input)
        tracks = self.track_running_stats
        count = self.num_batches_tracked if tracks else None
        return functional.sync_batch_norm(
            input,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            self.momentum if self.momentum is not None or count is not None else 0.0,
            self.eps,
            process_group=self.process_group,
            num_batches_tracked=count,
            skip_nonfinite_stats=self.skip_nonfinite_stats,
        )

    def _synchronises(self) -> bool:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.process_group or dist.group.WORLD) > 1

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """As torch's: a model with each batch norm replaced by one of these, with the same parameters and buffers.

        Args:
            module: the model; it is changed in place, and itself replaced where it is a batch norm.
            process_group: of ``torch.distributed``; None for that of all processes.

        Returns:
            The model.

        Raises:
            ValueError: for a batch norm with an activation in it, which this layer has not: unfuse the model first.
        """
        result = module
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            if hasattr(module, "activation"):
                raise ValueError(f"convert_sync_batchnorm: {type(module).__name__} has an activation; unfuse the model")
            result = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
            )
            if module.affine:
                result.weight, result.bias = module.weight, module.bias
            result.running_mean, result.running_var = module.running_mean, module.running_var
            result.num_batches_tracked = module.num_batches_tracked
            result.training = module.training
            for name in ("qconfig", "skip_nonfinite_stats"):
                if hasattr(module, name):
                    setattr(result, name, getattr(module, name))
        for name, child in module.named_children():
            result.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return result
