from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.ops.gpu import Card, read_cards

GIB = 1 << 30


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """As much of pynvml as is used; `broken` cards answer with an error."""

    NVMLError = FakeNvmlError

    def __init__(self, names=("NVIDIA GeForce RTX 3090",), *, driver=True, broken=(), divided=None):
        self.names, self.driver, self.broken = names, driver, broken
        self.divided = divided or {}  # card → place → GiB of the instance there
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
        if isinstance(handle, tuple):
            card, size = handle
            return f"{self.names[card]} MIG {size}g"
        return self.names[handle]

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if not self.divided:
            raise FakeNvmlError("Not Supported")
        return [int(handle in self.divided), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, place):  # noqa: N802
        if place not in self.divided[card]:
            raise FakeNvmlError("Not Found")
        return card, self.divided[card][place]

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        if isinstance(handle, tuple):
            return SimpleNamespace(total=handle[1] * GIB, free=handle[1] * GIB)
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
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_lost_card_is_left_out_and_logged(caplog):
    nvml = FakeNvml(("A", "B"), broken=(0,))
    assert [card.name for card in read_cards(nvml)] == ["B"]
    assert "GPU 0 cannot be read: GPU is lost" in caplog.text
    assert nvml.open == 0


def test_a_divided_card_counts_as_its_smallest_instance(caplog):
    nvml = FakeNvml(("NVIDIA A100", "NVIDIA A100"), divided={0: {1: 20, 3: 10}, 1: {}})
    [card] = read_cards(nvml)
    assert (card.name, card.total) == ("NVIDIA A100 MIG 10g", 10 * GIB)
    assert card.bus_id == "0000:3a:00.0"
    assert "GPU 1 cannot be read: Not Found" in caplog.text


def test_an_error_of_another_kind_still_closes_the_session():
    nvml = FakeNvml()
    nvml.nvmlDeviceGetName = lambda _handle: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        read_cards(nvml)
    assert nvml.open == 0


def test_the_real_library_answers_without_an_error():
    assert isinstance(read_cards(), list)
