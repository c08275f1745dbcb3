"""SyncBatchNorm: two processes against one batch norm; one process; conversion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastnn

TESTS = Path(__file__).resolve().parent


def test_two_processes_are_one_batch():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(TESTS / "sync_batch_norm_worker.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.count("all is well") == 2, done.stdout[-2000:] + done.stderr[-4000:]


def test_one_process_is_a_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    ours, plain = fastnn.nn.SyncBatchNorm(3), fastnn.nn.BatchNorm2d(3)
    for _ in range(2):
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    assert torch.equal(ours.eval()(x), plain.eval()(x))
    with pytest.raises(RuntimeError, match="has not been initialised"):
        fastnn.functional.sync_batch_norm(x, None, None)


def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    )


def test_convert_sync_batchnorm_is_torch_s():
    ours, torch_s = model(), model()
    ours[1].momentum, ours[1].training = 0.7, False
    weight = ours[1].weight
    ours = fastnn.nn.SyncBatchNorm.convert_sync_batchnorm(ours, process_group="group")
    torch_s = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch_s)
    assert type(ours[1]) is fastnn.nn.SyncBatchNorm and isinstance(ours[1], torch.nn.SyncBatchNorm)
    assert ours[1].weight is weight and (ours[1].momentum, ours[1].training) == (0.7, False)
    assert ours[1].process_group == "group"
    assert list(ours.state_dict()) == list(torch_s.state_dict())
    assert type(fastnn.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm1d(2))) is fastnn.nn.SyncBatchNorm
    with pytest.raises(ValueError, match="BatchNormReLU2d has an activation"):
        fastnn.nn.SyncBatchNorm.convert_sync_batchnorm(fastnn.nn.BatchNormReLU2d(3))


def test_fastnn_convert_makes_them_in_place():
    network = model()
    norm, keys = network[1], list(network[1].state_dict())
    assert fastnn.convert(network, sync_batchnorm=True) is network
    assert network[1] is norm and type(norm) is fastnn.nn.SyncBatchNorm and list(norm.state_dict()) == keys
    assert norm.process_group is None
    fastnn.convert(network, sync_batchnorm=True)
    assert type(norm) is fastnn.nn.SyncBatchNorm
    fastnn.revert(network)
    assert type(norm) is torch.nn.SyncBatchNorm and norm.process_group is None
    assert type(fastnn.convert(network)[1]) is fastnn.nn.SyncBatchNorm
    for cannot in (fastnn.nn.BatchNormReLU2d(3), torch.nn.LazyBatchNorm2d()):
        with pytest.raises(ValueError, match="cannot be made a SyncBatchNorm"):
            fastnn.convert(torch.nn.Sequential(cannot), sync_batchnorm=True)
