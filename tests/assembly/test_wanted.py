"""What is to be served: names, files, and whose word counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.assembly.agents import agent_of
from server.assembly.engine import llama_params
from server.assembly.grouping import grouped
from server.assembly.sizing import budget_of, sized
from server.assembly.wanted import Wanted, wanted
from server.catalog.plan import Memory
from server.core.errors import ConfigError
from server.settings import Settings, load
from tests.adapters import AdapterSpec, write_adapter
from tests.llama.plan_models import PlanSpec, write_plan_model
from tests.models import ModelSpec, write_model

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"
PLENTY = Memory(cpu_available=2**40)
CARD = Memory(gpu_total=24 * 2**30, cpu_available=2**36)


def settings_of(tmp_path: Path, text: str) -> Settings:
    config = tmp_path / "c.yaml"
    config.write_text(text, encoding="utf-8")
    return load(config, environ={}).settings


def read(tmp_path: Path, text: str, fetched: list[str] | None = None) -> list[Wanted]:
    def fetch(name: str) -> Path:
        if fetched is not None:
            fetched.append(name)
        return Path(name) if Path(name).exists() else DEMO

    return wanted(settings_of(tmp_path, text), fetch)


def modelfile(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / f"{name}.Modelfile"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_come_from_files_catalogue_and_entries(tmp_path) -> None:
    fetched: list[str] = []
    names = read(tmp_path, "models: {small: {from: 'qwen3:0.6b', preload: true}}", fetched)
    assert [(one.name, one.preload) for one in names] == [("demo", True), ("small", True)]
    assert fetched == ["models/demo.gguf", "qwen3:0.6b"]
    (only,) = read(tmp_path, "model: {path: 'qwen3:4b'}")
    assert only.name == "qwen3:4b"
    (only,) = read(tmp_path, "model: {name: best}")
    assert only.name == "best"


def test_a_modelfile_speaks_for_its_agent_and_the_settings_for_the_server(tmp_path) -> None:
    path = modelfile(
        tmp_path,
        "docs",
        f"FROM {DEMO}\nPARAMETER num_ctx 1024\nPARAMETER num_predict 99\nPARAMETER num_gpu 5\n"
        "PARAMETER temperature 0.2\nPARAMETER stop END\nPARAMETER overflow drop_oldest\n"
        "PARAMETER keep_alive 10m\nSYSTEM be brief\n",
    )
    (one,) = read(tmp_path, f"model: {{path: {path}}}")
    assert (one.name, one.n_ctx, one.model.n_gpu_layers, one.keep_alive) == ("docs", 1024, 5, 600)
    agent = agent_of(one, 1024)
    assert (agent.n_ctx, agent.default_max_tokens, agent.max_tokens) == (1024, 99, 99)
    assert (agent.system, agent.overflow, agent.stop) == ("be brief", "drop_oldest", ("END",))
    assert agent.sampling["temperature"] == 0.2
    # Whoever starts the server and says so, decides over the file.
    (one,) = read(tmp_path, f"model: {{path: {path}, n_gpu_layers: 9}}\nengine: {{n_ctx: 512}}")
    assert (one.n_ctx, one.model.n_gpu_layers) == (512, 9)
    # An entry's own words win over its Modelfile's, those over the common ones.
    text = f"engine: {{n_ctx: 512}}\nmodels: {{x: {{from: {path}, n_gpu_layers: 7}}}}"
    _, one = read(tmp_path, text)
    assert (one.name, one.n_ctx, one.model.n_gpu_layers) == ("x", 1024, 7)


def test_a_folder_of_modelfiles_is_served_by_name(tmp_path) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    modelfile(folder, "base", f"FROM {DEMO}\nSYSTEM one\n")
    modelfile(folder, "child", "FROM base\nPARAMETER num_ctx 256\n")
    names = read(tmp_path, f"modelfiles: {folder}")
    assert [one.name for one in names] == ["demo", "base", "child"]
    child = names[2]
    assert child.modelfile is not None
    assert (child.modelfile.system, child.n_ctx) == ("one", 256)


def test_who_answers_for_others_is_served_and_needs_no_card(tmp_path) -> None:
    path = modelfile(tmp_path, "docs", f"FROM {DEMO}\nPARAMETER num_gpu 2\n")
    text = (
        f"models: {{spare: {{from: {DEMO}}}, fast: {{from: {DEMO}, n_gpu_layers: 3}}, "
        f"docs: {{from: {path}}}, other: {{from: {DEMO}}}}}\n"
        f"aliases: {{known: other}}\n"
        f"gateway: {{fallback: {{model: {DEMO}, models: {{demo: [spare, fast, docs, known]}}}}}}"
    )
    found = {one.name: one.model.n_gpu_layers for one in read(tmp_path, text)}
    assert found == {
        "demo": "auto",
        "spare": 0,
        "fast": 3,
        "docs": 2,
        "other": "auto",
        str(DEMO): 0,
    }
    with pytest.raises(ConfigError, match=r"gateway\.fallback: "):
        read(tmp_path, "gateway: {fallback: {model: nope.Modelfile}}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: {demo: {from: a.gguf}}", "served under this name already"),
        (
            "models: {x: {from: a.gguf, kv_cells: 100, n_ctx: 200}}",
            "models.x: engine: kv_cells must be at least n_ctx",
        ),
        ("models: {x: {from: nope.Modelfile}}", "models.x: The Modelfile"),
        ("modelfiles: nowhere", "nowhere"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, monkeypatch, text, told) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, text)


def test_same_weights_and_sizes_are_one_context_with_the_longest_n_ctx(tmp_path) -> None:
    path = modelfile(tmp_path, "docs", f"FROM {DEMO}\nPARAMETER num_ctx 2048\n")
    names = read(
        tmp_path,
        f"model: {{path: {DEMO}}}\nengine: {{n_ctx: 512}}\n"
        f"models: {{docs: {{from: {path}}}, wide: {{from: {DEMO}, slots: 8}}}}",
    )
    both, wide = sized(grouped(names, PLENTY), PLENTY)
    assert [member.name for member in both.group.members] == ["demo", "docs"]
    assert (both.sizes.slots, both.sizes.n_ctx, both.sizes.kv_cells) == (4, 2048, 8192)
    assert [agent_of(member, 2048).n_ctx for member in both.group.members] == [512, 2048]
    assert (wide.sizes.slots, wide.sizes.n_ctx) == (8, 512)
    alone = sized(grouped(names[:1], PLENTY), PLENTY)[0]
    kv = both.plan.kv_cpu - alone.plan.kv_cpu
    assert both.plan.weights_cpu == alone.plan.weights_cpu
    assert kv == (8192 - 2048) * both.plan.kv_per_token


def test_layers_on_a_gpu_part_contexts_only_where_there_is_one(tmp_path) -> None:
    path = modelfile(tmp_path, "docs", f"FROM {DEMO}\nPARAMETER num_gpu 2\n")
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nmodels: {{docs: {{from: {path}}}}}")
    assert len(grouped(names, PLENTY)) == 1
    assert len(grouped(names, CARD)) == 2


def test_all_layers_in_whatever_words_are_one_context(tmp_path) -> None:
    for name, layers in (("a", "all"), ("b", "999"), ("c", "2")):
        modelfile(tmp_path, name, f"FROM {DEMO}\nPARAMETER num_gpu {layers}\n")
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nmodelfiles: {tmp_path}")
    whole, two = sized(grouped(names, CARD), CARD)
    assert [one.name for one in whole.group.members] == ["demo", "a", "b"]
    assert (whole.sizes.n_gpu_layers, two.sizes.n_gpu_layers) == ("all", 2)
    assert [one.group.name for one in sized(grouped(names[3:], CARD), CARD)] == ["c"]
    assert len(grouped(names, PLENTY)) == 1


def test_experts_left_to_the_planner_beside_none_in_memory_are_one_context(tmp_path) -> None:
    text = f"model: {{path: {DEMO}, n_gpu_layers: all}}\nmodels: {{%s: {{from: {DEMO}, n_cpu_moe: %s}}}}"
    for experts, contexts in (("auto", 1), (0, 1), (1, 2)):
        names = read(tmp_path, text % ("other", experts))
        groups = grouped(names, CARD)
        assert len(groups) == contexts
        assert groups[0].model.n_cpu_moe == 0


def test_a_part_of_the_layers_is_not_taken_over_by_who_leaves_them_open(tmp_path, caplog) -> None:
    path = modelfile(tmp_path, "few", f"FROM {DEMO}\nPARAMETER num_gpu 1\n")
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nmodels: {{few: {{from: {path}}}}}")
    assert [group.model.n_gpu_layers for group in grouped(names, CARD)] == ["auto", 1]
    assert "demo and few load the same weights twice" in caplog.text


def test_a_refusal_names_the_agent_that_asks(tmp_path) -> None:
    path = modelfile(tmp_path, "long", f"FROM {DEMO}\nPARAMETER num_ctx 1000000\n")
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nmodels: {{long: {{from: {path}}}}}")
    with pytest.raises(ConfigError, match=r"^long: n_ctx 1000000 is more"):
        sized(grouped(names, PLENTY), PLENTY)


def test_experts_that_a_dense_model_does_not_have_cannot_stay_behind(tmp_path) -> None:
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    names = read(tmp_path, f"model: {{path: {path}, n_cpu_moe: 3}}")
    with pytest.raises(ConfigError, match=r"m: n_cpu_moe is 3, but .* dense model"):
        sized(grouped(names, PLENTY), PLENTY)


def test_an_adapter_of_the_command_line_wins_over_the_modelfiles(tmp_path) -> None:
    ours = write_adapter(tmp_path / "a.gguf", AdapterSpec(), ModelSpec())
    path = modelfile(tmp_path, "docs", f"FROM {DEMO}\nADAPTER ./none.gguf\n")
    (one,) = read(tmp_path, f"model: {{path: {path}, adapter: {ours}, adapter_scale: 0.5}}")
    assert (one.model.adapter, one.model.adapter_scale) == (ours, 0.5)
    with pytest.raises(ConfigError, match=r"docs.Modelfile:2:9: ADAPTER: .*none.gguf does not"):
        read(tmp_path, f"model: {{path: {path}}}")


def test_auto_sizes_are_chosen_and_what_cannot_fit_is_refused_with_what_would(tmp_path) -> None:
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nengine: {{slots: auto, n_ctx: auto}}")
    (one,) = sized(grouped(names, CARD), CARD)
    assert one.reason
    assert one.sizes.n_gpu_layers == "all"
    assert one.sizes.kv_cells == one.sizes.slots * one.sizes.n_ctx
    budget = budget_of(CARD)
    assert budget.holds(one.footprint)
    assert budget.gpu == 24 * 2**30 - CARD.reserve - CARD.cuda_context
    small = Memory(cpu_available=400 * 2**20)
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nengine: {{slots: 64, n_ctx: 8192}}")
    with pytest.raises(ConfigError, match="does not fit") as caught:
        sized(grouped(names, small), small)
    assert caught.value.message.startswith("demo: does not fit: 64 × 8192 tokens")
    assert "What fits:\n  onegpu serve" in caught.value.message


def test_an_adapter_counts_before_anything_is_loaded(tmp_path) -> None:
    base = ModelSpec()
    path = write_model(tmp_path / "m.gguf", base)
    adapter = write_adapter(tmp_path / "a.gguf", AdapterSpec(), base)
    text = f"model: {{path: {path}%s}}\nengine: {{n_ctx: 256}}"
    (plain,) = sized(grouped(read(tmp_path, text % ""), PLENTY), PLENTY)
    tight = Memory(cpu_available=plain.footprint.cpu)
    assert sized(grouped(read(tmp_path, text % ""), tight), tight)
    names = read(tmp_path, text % f", adapter: {adapter}")
    with pytest.raises(ConfigError, match="does not fit with its adapter"):
        sized(grouped(names, tight), tight)


def test_weights_that_are_not_repacked_are_not_planned_twice(tmp_path) -> None:
    path = write_plan_model(tmp_path / "m.gguf", PlanSpec(kind="Q4_0"))
    (usual,) = sized(grouped(read(tmp_path, f"model: {{path: {path}}}"), PLENTY), PLENTY)
    text = f"model: {{path: {path}, extra_buffers: false}}"
    (plain,) = sized(grouped(read(tmp_path, text), PLENTY), PLENTY)
    assert plain.plan.weights_cpu < usual.plan.weights_cpu
    assert (llama_params(plain).extra_buffers, llama_params(usual).extra_buffers) == (False, True)


def test_a_context_beyond_training_is_refused_but_a_default_gives_way(tmp_path) -> None:
    names = read(tmp_path, f"model: {{path: {DEMO}}}\nengine: {{n_ctx: 1000000, slots: 1}}")
    for memory in (PLENTY, Memory(cpu_available=2**29)):
        # Whether it fits or not: what would fit must not be as long.
        with pytest.raises(ConfigError, match="trained for"):
            sized(grouped(names, memory), memory)


def test_what_is_pinned_is_the_modelfiles_to_say_and_the_entrys(tmp_path) -> None:
    docs = modelfile(tmp_path, "docs", "FROM qwen3:0.6b\nSYSTEM Be brief.\nPARAMETER pin true")
    models = f"models: {{a: {{from: '{docs}'}}, b: {{from: '{docs}', pin: false}}}}"
    assert [one.pin for one in read(tmp_path, models)] == [False, True, False]
    _, agent, other = read(tmp_path, models)
    assert [agent_of(one, 4096).pin for one in (agent, other)] == [True, False]


@pytest.mark.parametrize("text", ["", "\nPARAMETER pin true"])
def test_there_must_be_something_to_pin(tmp_path, text) -> None:
    bare = modelfile(tmp_path, "bare", f"FROM qwen3:0.6b{text}")
    pin = "" if text else ", pin: true"
    with pytest.raises(
        ConfigError, match=r"models\.a: pin keeps .* and there is none: write SYSTEM"
    ):
        read(tmp_path, f"models: {{a: {{from: '{bare}'{pin}}}}}")
