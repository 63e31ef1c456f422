"""What models are planned for: the card that can be used, and system memory."""

from __future__ import annotations

import pytest

from server.assembly import machine
from server.core.errors import ConfigError
from server.ops.gpu import Card
from server.settings import Settings

GIB = 2**30


@pytest.fixture
def here(monkeypatch):
    """Stand in for the machine: a card of 24 GiB, 8 GiB of system memory."""

    def make(*, card: bool, offload: bool = True) -> None:
        cards = [Card(0, "RTX", 24 * GIB, 23 * GIB, (8, 6), "1")] if card else []
        monkeypatch.setattr(machine, "read_cards", lambda: cards)
        monkeypatch.setattr(machine, "supports_offload", lambda: offload)
        monkeypatch.setattr(machine, "available_memory", lambda: 8 * GIB)

    return make


def settings(**sections) -> Settings:
    return Settings.model_validate(sections)


def test_without_a_card_the_reserve_is_of_system_memory(here) -> None:
    here(card=False)
    memory = machine.machine_memory(settings(memory={"reserve": GIB}), gpu_wanted=True)
    assert not memory.has_gpu
    assert memory.cpu_available == 7 * GIB
    assert (
        machine.machine_memory(settings(memory={"ram": GIB}), gpu_wanted=True).cpu_available == GIB
    )


def test_with_a_card_the_reserve_is_the_cards(here) -> None:
    here(card=True)
    memory = machine.machine_memory(settings(memory={"reserve": GIB}), gpu_wanted=True)
    assert (memory.gpu_total, memory.gpu_free, memory.gpu_limit) == (24 * GIB, 23 * GIB, 22 * GIB)
    assert memory.cpu_available == 8 * GIB
    less = machine.machine_memory(settings(memory={"vram": "10GiB", "reserve": 0}), gpu_wanted=True)
    assert less.gpu_limit == 10 * GIB


def test_a_build_without_gpu_support_is_refused_unless_it_is_meant(here) -> None:
    here(card=True, offload=False)
    with pytest.raises(ConfigError, match="--allow-cpu"):
        machine.refuse_cpu_build(settings())
    machine.refuse_cpu_build(settings(model={"n_gpu_layers": 0}))
    # Even if another model names layers: this build has nowhere to put them.
    assert not machine.machine_memory(settings(), gpu_wanted=True).has_gpu


def test_the_card_is_planned_for_when_any_model_is_on_it(here) -> None:
    here(card=True)
    on_cpu = settings(model={"n_gpu_layers": 0})
    machine.refuse_cpu_build(on_cpu)
    assert machine.machine_memory(on_cpu, gpu_wanted=True).gpu_total == 24 * GIB
    assert not machine.machine_memory(on_cpu, gpu_wanted=False).has_gpu


def test_of_several_cards_llama_cpps_own_order_counts(here, monkeypatch, caplog) -> None:
    here(card=True)
    cards = [
        Card(at, name, total * GIB, free * GIB, (8, 6), "1", f"0000:{at:02x}:00.0")
        for at, name, total, free in ((0, "small", 8, 7), (1, "busy", 24, 1), (2, "large", 80, 79))
    ]
    monkeypatch.setattr(machine, "read_cards", lambda: cards)
    # The fastest comes first, and the busy one is hidden.
    monkeypatch.setattr(
        "server.llama.main_card.llama_bus_ids", lambda: ["0000:02:00.0", "0000:00:00.0"]
    )
    names = [
        machine.machine_memory(settings(model={"main_gpu": at}), gpu_wanted=True).gpu_name
        for at in (0, 1)
    ]
    assert names == ["large", "small"]
    with pytest.raises(ConfigError, match=r"main_gpu is 2, but llama\.cpp sees 2 GPUs"):
        machine.machine_memory(settings(model={"main_gpu": 2}), gpu_wanted=True)
    assert not caplog.records
    monkeypatch.setattr("server.llama.main_card.llama_bus_ids", list)
    assert machine.machine_memory(settings(), gpu_wanted=True).gpu_name == "busy"
    assert "planning for the one with the least free memory" in caplog.text


@pytest.mark.parametrize(
    ("wish", "planned", "got"),
    [
        ("auto", GIB, 2 * GIB),
        ("auto", 7 * GIB, GIB),  # never what the models are to have
        ("auto", 9 * GIB, 0),
        (0, GIB, 0),
        ("3GiB", GIB, 3 * GIB),
    ],
)
def test_prefixes_may_have_a_part_of_system_memory(here, wish, planned, got) -> None:
    here(card=True)
    asked = settings(engine={"host_cache": wish})
    memory = machine.machine_memory(asked, gpu_wanted=True)
    assert memory.cpu_available == 8 * GIB - (got if wish == "3GiB" else 0)
    assert machine.host_cache(asked, memory, planned) == got


def test_prefixes_have_at_most_8_gib_unless_more_is_wished(here, monkeypatch) -> None:
    here(card=True)
    monkeypatch.setattr(machine, "available_memory", lambda: 100 * GIB)
    memory = machine.machine_memory(settings(), gpu_wanted=True)
    assert machine.host_cache(settings(), memory, GIB) == 8 * GIB
    assert machine.host_cache(settings(engine={"host_cache": "20GiB"}), memory, GIB) == 20 * GIB
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert machine.host_cache(settings(), memory, GIB) == 0


def test_more_memory_for_prefixes_than_there_is_is_refused(here) -> None:
    here(card=False)
    with pytest.raises(ConfigError, match=r"engine.host_cache is 9.00 GiB, but only 8.00 GiB"):
        machine.machine_memory(settings(engine={"host_cache": "9GiB"}), gpu_wanted=False)
