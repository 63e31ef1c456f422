"""What `make install` builds for: machines made of folders, with fake nvidia-smi and nvcc."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from install_machine import Machine, asked_build
from install_output import Failed
from server.llama.gpu_build import gpu_mismatch

RTX = "NVIDIA GeForce RTX 4090, 8.9"
ARGUMENTS = (
    "-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES={} -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF "
    "-DGGML_CUDA_NCCL=OFF"
)
SMI = """#!/bin/sh
case "$*" in
  *compute_cap*) {query} ;;
  *) echo "| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: {cuda} |" ;;
esac
"""
NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.93" ;;
  --list-gpu-arch) printf 'compute_%s\\n' {known} ;;
  *) echo "$*" >> "$0.calls"; {trial} ;;
esac
"""


class Box:
    """A machine under a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        (folder / "bin").mkdir()
        # The fakes are shell scripts: nothing else of this machine is on their PATH.
        for tool in ("sh", "printf", "sleep"):
            (folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
        self.environment = {"PATH": str(folder / "bin")}

    def tool(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)
        return file

    def smi(self, *cards: str, query: str = "", cuda: str = "12.8") -> None:
        listed = "; ".join(f'echo "{card}"' for card in cards)
        self.tool("bin/nvidia-smi", SMI.format(query=query or listed, cuda=cuda))

    def nvcc(
        self,
        path: str = "bin/nvcc",
        release: str = "12.8",
        known: str = "75 80 89 90",
        trial: str = "true",
    ) -> Path:
        return self.tool(path, NVCC.format(release=release, known=known, trial=trial))

    def card_files(self) -> None:
        (self.root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
        (self.root / "dev").mkdir()
        (self.root / "dev/nvidia0").touch()

    @property
    def machine(self) -> Machine:
        return Machine(self.environment, self.root)


@pytest.fixture
def box(tmp_path) -> Box:
    return Box(tmp_path)


def test_a_card_with_a_compiler_gets_a_build_for_its_architecture(box) -> None:
    box.smi(RTX)
    nvcc = box.nvcc()
    build = box.machine.choose()
    assert build.cuda
    assert not build.asked
    assert build.cmake_args == ARGUMENTS.format("89")
    assert "native" not in build.cmake_args
    assert build.reason == (
        f"llama.cpp for CUDA: NVIDIA GeForce RTX 4090, compute capability 8.9; nvcc 12.8, {nvcc}"
    )
    assert build.environment["CUDACXX"] == str(nvcc)
    assert build.environment["PATH"].split(":")[0] == str(nvcc.parent)
    # What was tried: this card's architecture, with cuBLAS.
    tried = Path(f"{nvcc}.calls").read_text(encoding="utf-8")
    assert "-arch=sm_89" in tried
    assert "-lcublas" in tried


def test_cards_of_several_generations_get_all_architectures_once(box) -> None:
    box.smi(RTX, "NVIDIA H200, 9.0", RTX)
    box.nvcc()
    assert box.machine.choose().cmake_args == ARGUMENTS.format("89;90")


def test_a_card_that_is_too_old_for_the_compiler_is_left_out_beside_another(box) -> None:
    box.smi("NVIDIA GeForce GT 710, 3.5", RTX)
    nvcc = box.nvcc()
    build = box.machine.choose()
    assert build.cmake_args == ARGUMENTS.format("89")
    assert build.reason.endswith("Not for NVIDIA GeForce GT 710 (3.5), too old for this nvcc")
    assert "-arch=sm_89" in Path(f"{nvcc}.calls").read_text(encoding="utf-8")


def test_a_card_that_is_newer_than_the_compiler_is_not_left_out(box) -> None:
    box.smi(RTX, "NVIDIA GeForce RTX 5090, 12.0")
    box.nvcc()
    assert "is too old for it: install a newer CUDA toolkit" in refusal(box)


@pytest.mark.parametrize(
    ("place", "variables"),
    [
        ("home/toolkit/bin/nvcc", {"CUDA_HOME": "home/toolkit"}),
        ("home/toolkit/bin/nvcc", {"CUDA_PATH": "home/toolkit"}),
        ("home/my-nvcc", {"CUDACXX": "home/my-nvcc"}),
        ("usr/local/cuda/bin/nvcc", {}),
        ("usr/local/cuda-12.10/bin/nvcc", {}),
        ("opt/cuda/bin/nvcc", {}),
    ],
)
def test_nvcc_is_found_where_toolkits_put_it(box, place, variables) -> None:
    wanted = box.nvcc(place)
    box.nvcc("usr/local/cuda-12.9/bin/nvcc") if "local" in place else None
    for name, value in variables.items():
        box.environment[name] = str(box.root / value)
    assert box.machine.nvcc() == str(wanted)


def test_without_a_card_it_is_the_cpu_and_says_so(box) -> None:
    box.nvcc()
    build = box.machine.choose()
    assert (build.cmake_args, build.asked, build.cuda) == ("", False, False)
    assert build.reason == "llama.cpp for the CPU: no NVIDIA card with a driver was found"


def test_a_card_without_a_driver_is_named(box) -> None:
    device = box.root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n", encoding="utf-8")
    (device / "class").write_text("0x030000\n", encoding="utf-8")
    assert "0000:01:00.0 has no NVIDIA driver" in box.machine.choose().reason


def test_the_tools_of_a_card_that_is_not_there_do_not_count(box) -> None:
    box.smi(query="echo 'NVIDIA-SMI has failed' >&2; exit 9")
    reason = box.machine.choose().reason
    assert reason.endswith(
        "no NVIDIA card with a driver was found (nvidia-smi: NVIDIA-SMI has failed)"
    )


def test_a_driver_that_hangs_is_no_missing_card(box, monkeypatch) -> None:
    monkeypatch.setattr("install_machine.PATIENCE", 0.2)
    box.smi(query="exec sleep 1000")
    said = refusal(box)
    assert "does not answer:" in said
    assert "did not answer within 0.2 s" in said


def test_the_driver_of_windows_is_asked_and_its_failure_told(box) -> None:
    box.smi(RTX)
    windows = box.root / "usr/lib/wsl/lib/nvidia-smi"
    windows.parent.mkdir(parents=True)
    (box.root / "bin/nvidia-smi").rename(windows)
    box.nvcc()
    assert box.machine.choose().cuda

    failed = SMI.format(query="echo 'Failed to initialize NVML' >&2; exit 9", cuda="")
    windows.write_text(failed, encoding="utf-8")
    said = refusal(box)
    assert "does not answer:\n    Failed to initialize NVML" in said
    assert "wsl --shutdown" in said

    windows.write_text(SMI.format(query="echo 'No devices were found'; exit 6", cuda=""))
    assert not box.machine.choose().cuda


def refusal(box: Box) -> str:
    with pytest.raises(Failed) as caught:
        box.machine.choose()
    return str(caught.value)


def test_a_card_without_a_compiler_stops_and_names_the_three_ways(box) -> None:
    box.smi(RTX, cuda="12.4")
    said = refusal(box)
    assert "NVIDIA card (NVIDIA GeForce RTX 4090), but no CUDA compiler" in said
    assert "cuda-toolkit-12-4" in said
    assert "docker compose up" in said
    assert "CPU=1 make install" in said


@pytest.mark.parametrize(
    ("nvcc", "message"),
    [
        ({"release": "11.5", "known": "52 61 75 80 86"}, "too old for it: install a newer"),
        (
            {"release": "13.0", "known": "90 100 120"},
            "too new for the driver, which runs CUDA up to 12.8",
        ),
        ({"known": "90 100"}, "no longer compiles for it: install an older"),
        (
            {
                "trial": "echo '#error -- unsupported GNU version! gcc versions later than 13' >&2; exit 1"
            },
            "CUDAHOSTCXX=g++-13 make install",
        ),
        (
            {"trial": "echo 'trial.cu:1:10: fatal error: cublas_v2.h: No such file' >&2; exit 1"},
            "lacks cuBLAS",
        ),
        (
            {
                "trial": "echo \"nvcc fatal : Unsupported gpu architecture 'compute_89'\" >&2; exit 1"
            },
            "cannot compile for this card",
        ),
        (
            {"trial": "echo 'something new' >&2; exit 2"},
            "fails on three lines of CUDA:\n    something new",
        ),
        ({"release": "$(exit 1)x"}, "names no release"),
    ],
)
def test_a_compiler_that_cannot_do_it_is_refused_before_llama_cpp_is_compiled(
    box, nvcc, message
) -> None:
    box.smi(RTX)
    box.nvcc(**nvcc)
    said = refusal(box)
    assert message in said
    assert "CPU=1 make install" in said


def test_another_host_compiler_is_what_is_tried(box) -> None:
    box.smi(RTX)
    nvcc = box.nvcc(trial='case "$*" in *"-ccbin g++-13"*) ;; *) exit 1 ;; esac')
    box.environment["CUDAHOSTCXX"] = "g++-13"
    assert box.machine.choose().environment["CUDACXX"] == str(nvcc)


def test_a_driver_that_does_not_answer_stops_where_there_is_a_card(box) -> None:
    box.card_files()
    assert "no nvidia-smi to ask" in refusal(box)
    box.smi(query="echo 'Driver/library version mismatch' >&2; exit 18")
    said = refusal(box)
    assert "does not answer:\n    Driver/library version mismatch" in said
    assert "reboot" in said


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("echo 'Field \"compute_cap\" is not a valid field'; exit 2", "driver is too old to tell"),
        ("echo 'NVIDIA Thing, [N/A]'", "gives '[N/A]' as the compute capability of NVIDIA Thing"),
    ],
)
def test_a_driver_that_cannot_tell_asks_for_the_architecture(box, query, message) -> None:
    box.smi(query=query)
    said = refusal(box)
    assert message in said
    assert 'CMAKE_ARGS="-DGGML_CUDA=ON' in said


def test_traces_of_a_card_are_read_without_asking_the_driver(box) -> None:
    assert box.machine.traces() == []
    box.card_files()
    (box.root / "dev/nvidiactl").touch()
    assert box.machine.traces() == ["dev/nvidia0", "proc/driver/nvidia/gpus/0000:01:00.0"]


@pytest.mark.parametrize(
    ("environment", "remembered", "wanted"),
    [
        ({}, {}, None),
        ({"CMAKE_ARGS": "-DGGML_VULKAN=ON"}, {"cmake_args": "-DX=1"}, "-DGGML_VULKAN=ON"),
        ({"CMAKE_ARGS": ""}, {"cmake_args": "-DX=1"}, ""),
        ({"CPU": "1"}, {"cmake_args": "-DGGML_CUDA=ON", "asked": False}, ""),
        ({"CPU": "1", "CMAKE_ARGS": "-DGGML_BLAS=ON"}, {}, "-DGGML_BLAS=ON"),
        ({}, {"cmake_args": "-DX=1", "asked": True}, "-DX=1"),
        ({}, {"cmake_args": "", "asked": True}, ""),
        ({}, {"cmake_args": "-DX=1"}, "-DX=1"),
        ({}, {"cmake_args": ""}, None),
        ({}, {"cmake_args": "-DGGML_CUDA=ON", "asked": False}, None),
        ({"CPU": "0"}, {"cmake_args": "-DX=1", "asked": True}, None),
    ],
)
def test_what_the_user_asks_for_wins_and_is_remembered(environment, remembered, wanted) -> None:
    build = asked_build(environment, remembered)
    assert (None if build is None else build.cmake_args) == wanted
    assert build is None or build.asked


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CPU": "maybe"}, "CPU=maybe is neither 1"),
        ({"CPU": "1", "CMAKE_ARGS": "-DGGML_CUDA=ON"}, "contradict each other"),
    ],
)
def test_contradictions_are_refused(environment, message) -> None:
    with pytest.raises(Failed, match=message):
        asked_build(environment, {})


class Card:
    name = "NVIDIA H200"


@pytest.mark.parametrize(
    ("cards", "offload", "told"),
    [([], False, False), ([Card()], True, False), ([], True, False), ([Card()], False, True)],
)
def test_a_cpu_build_beside_a_card_is_told(cards, offload, told) -> None:
    message = gpu_mismatch(cards, offload)
    assert (message is not None) == told
    if message is not None:
        for part in ("NVIDIA H200", "make install", "--allow-cpu", "model.n_gpu_layers: 0"):
            assert part in message
