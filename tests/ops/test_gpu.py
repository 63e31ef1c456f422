from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.ops.gpu import Card, memory_used, read_cards

GIB = 1 << 30


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """As much of pynvml as is used; `broken` cards answer with an error."""

    NVMLError = FakeNvmlError

    def __init__(self, names=("NVIDIA GeForce RTX 3090",), *, driver=True, broken=()):
        self.names, self.driver, self.broken = names, driver, broken
        self.open = 0

    def nvmlInit(self):  # noqa: N802 - NVML's names
        if not self.driver:
            raise FakeNvmlError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"550.54"

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index in self.broken or index >= len(self.names):
            raise FakeNvmlError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, _handle):  # noqa: N802
        return SimpleNamespace(total=24 * GIB, free=20 * GIB, used=4 * GIB)

    def nvmlDeviceGetPciInfo(self, handle):  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{0x3A + handle:02X}:00.0")

    def nvmlDeviceGetCudaComputeCapability(self, _handle):  # noqa: N802
        return (8, 6)


def test_a_card_is_read():
    nvml = FakeNvml()
    card = Card(0, "NVIDIA GeForce RTX 3090", 24 * GIB, 20 * GIB, (8, 6), "550.54", "0000:3a:00.0")
    assert read_cards(nvml) == [card]
    assert card.architecture == "86"
    assert nvml.open == 0


def test_a_machine_without_driver_has_no_cards(caplog):
    nvml = FakeNvml(driver=False)
    assert read_cards(nvml) == []
    assert memory_used(0, nvml) is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_lost_card_is_left_out_and_logged(caplog):
    nvml = FakeNvml(("A", "B"), broken=(0,))
    assert [card.name for card in read_cards(nvml)] == ["B"]
    assert "GPU 0 cannot be read: GPU is lost" in caplog.text
    assert nvml.open == 0


def test_used_memory_is_what_is_not_free():
    nvml = FakeNvml()
    assert memory_used(0, nvml) == (4 * GIB, 24 * GIB)
    assert memory_used(7, nvml) is None
    assert nvml.open == 0


def test_an_error_of_another_kind_still_closes_the_session():
    nvml = FakeNvml()
    nvml.nvmlDeviceGetName = lambda _handle: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        read_cards(nvml)
    assert nvml.open == 0


def test_the_real_library_answers_without_an_error():
    assert isinstance(read_cards(), list)
