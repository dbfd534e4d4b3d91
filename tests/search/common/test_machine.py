"""One reading of the machine, and the lines that a study, a trial and a cache address keep of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.common.machine import describe, gpu_models, gpu_numbers, machine_kind, num_cores, visible_gpus
from search.session.passport import hardware_here
from tests.conftest import ROOT
from tests.search.fakes import make_study
from trainer.machine import cpu_model, cpu_name

CPUINFO = """processor : 0
model name : Cray-1  @ 80 MHz
flags : fpu avx2 sse avx fma

processor : 1
model name : Cray-2
"""


def machine(folder: Path, *cards: str) -> Path:
    """A /proc with a processor and these GPU models."""
    (folder / "cpuinfo").write_text(CPUINFO)
    for i, model in enumerate(cards):
        card = folder / "driver" / "nvidia" / "gpus" / f"0000:0{i}"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {model}\nIRQ: {i}\n")
    return folder


def devices(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_a_processor_is_told_by_its_first_core(tmp_path: Path):
    proc, dev = machine(tmp_path / "."), devices(tmp_path / "dev", "nvidiactl", "tty0")
    assert cpu_model(proc) == "Cray-1  @ 80 MHz"
    assert cpu_name(proc) == "Cray-1  @ 80 MHz avx avx2 fma"
    assert machine_kind(proc, dev) == "Cray-1 @ 80 MHz"
    assert describe(gpus=0, threads=1, proc=proc) == f"Cray-1  @ 80 MHz, {num_cores()} cores, 1 thread"


def test_gpus_are_told_by_the_driver_s_list(tmp_path: Path):
    proc = machine(tmp_path, "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3")
    dev = devices(tmp_path / "dev", "nvidia0", "nvidia10", "nvidia2", "nvidia-uvm", "nvidiactl")
    assert gpu_numbers(dev) == ("0", "2", "10")
    assert gpu_models(proc, dev) == ("NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3")
    assert machine_kind(proc, dev) == "NVIDIA A100-SXM4-40GB, NVIDIA H100 80GB HBM3"
    assert describe(gpus=8, threads=4, proc=proc) == "8 x NVIDIA A100-SXM4-40GB"
    assert machine_kind(proc, tmp_path / "none") == "Cray-1 @ 80 MHz"  # a host's list in a container


def test_gpus_that_the_driver_does_not_list_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dev, smi = devices(tmp_path / "dev", "nvidia0"), tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_kind(tmp_path / "nothing", dev) == "NVIDIA GPU"
    gpu_models.cache_clear()
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4'\necho 'NVIDIA L4'\n")
    smi.chmod(0o755)
    assert machine_kind(tmp_path / "nothing", dev) == "NVIDIA L4"


def test_a_system_without_proc_still_has_a_name(tmp_path: Path):
    nothing = tmp_path / "nothing"
    assert cpu_model(nothing) and cpu_name(nothing) == cpu_model(nothing)
    assert describe(gpus=0, threads=2, proc=nothing).endswith("cores, 2 threads")
    assert gpu_models(nothing, nothing) == () and machine_kind(nothing, nothing)


LISTS = {  # CUDA_VISIBLE_DEVICES on a machine of four cards -> what CUDA sees of it, each card once
    "3, 1,-1,": ("3", "1"),
    "": (),
    "-1": (),
    "NoDevFiles": (),
    "none": (),
    "void": (),
    "0 1": (),
    "0;1": (),
    "0.5": (),
    "0x1": (),
    ",0": (),
    "0,,1": ("0",),
    "0,0": ("0",),
    "1,0,1": ("1", "0"),
    "0,-1,1": ("0",),
    "0,5,99": ("0",),
    "0,4": ("0",),
    "3,2,1,0": ("3", "2", "1", "0"),
    "\u0661": (),
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1": ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "1"),
    "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2": ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2",),
    "MIG-94cd9d4a-5e9d,none": ("MIG-94cd9d4a-5e9d",),
    "GPU": (),
}


@pytest.mark.parametrize("given", LISTS)
def test_visible_gpus_are_those_that_the_environment_leaves(tmp_path: Path, given: str):
    four = devices(tmp_path / "dev", "nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": given}, four) == LISTS[given]


def test_without_a_list_all_gpus_are_visible_by_their_index(tmp_path: Path):
    dev = devices(tmp_path / "dev", "nvidia3", "nvidia5")  # a container's share of a machine
    assert visible_gpus({}, dev) == ("0", "1") and visible_gpus({}, tmp_path) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,7"}, tmp_path) == ("1", "7")  # no files, no knowledge


@pytest.mark.parametrize(("given", "gpus"), [("NoDevFiles", 0), ("none", 0), ("0", 1), (None, 0)])
def test_a_trial_s_hardware_is_a_gpu_only_where_one_is_dealt(tmp_path: Path, given: str | None, gpus: int):
    study = make_study(tmp_path)
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert hardware_here(study, num_threads=1, environ=environ) == describe(gpus=gpus, threads=1)
    study.fixed["device"] = "cpu"
    assert hardware_here(study, num_threads=1, environ=environ) == describe(gpus=0, threads=1)


def test_it_is_read_without_torch():
    code = "import sys; from search.common.machine import machine_kind; machine_kind(); "
    code += "assert 'torch' not in sys.modules"
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)
