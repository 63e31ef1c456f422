"""What the catalogue lists. Repositories and sizes are from the publishers' pages on the hub.

Context lengths are the header's. Qwen3's is 40960: 32768 tokens of prompt and 8192 of answer; up to 131072 takes YaRN
(`model.rope_scaling`). The small Qwen3 models have only Q8_0 in the vendor's repository, and Qwen2.5-7B's larger files
are split there.
"""

from __future__ import annotations

from server.catalog.catalogue import Catalogue, CatalogueModel, Source

_GB = 1_000_000_000


def _sizes(**gigabytes: float) -> dict[str, int]:
    return {quant: round(size * _GB) for quant, size in gigabytes.items()}


def builtin_catalogue() -> Catalogue:
    """Return the models that onegpu knows by name."""
    return Catalogue((*_qwen3(), *_qwen2(), _phi3()))


def _qwen3() -> tuple[CatalogueModel, ...]:
    return (
        CatalogueModel(
            "qwen3:32b",
            (
                Source(
                    "Qwen/Qwen3-32B-GGUF",
                    _sizes(Q4_K_M=19.8, Q5_0=22.6, Q5_K_M=23.2, Q6_K=26.9, Q8_0=34.8),
                ),
                Source("unsloth/Qwen3-32B-GGUF", _sizes(Q2_K=12.3, Q3_K_M=16.0, BF16=65.5)),
            ),
            n_ctx_train=40960,
            n_params=32.8e9,
            license="apache-2.0",
        ),
        CatalogueModel(
            "qwen3:30b-a3b",
            (
                Source(
                    "Qwen/Qwen3-30B-A3B-GGUF",
                    _sizes(Q4_K_M=18.6, Q5_0=21.1, Q5_K_M=21.7, Q6_K=25.1, Q8_0=32.5),
                ),
                Source("unsloth/Qwen3-30B-A3B-GGUF", _sizes(Q2_K=11.3, Q3_K_M=14.7, BF16=61.1)),
            ),
            n_ctx_train=40960,
            n_params=30.5e9,
            license="apache-2.0",
            aliases=("qwen3:30b",),
        ),
        _small_qwen3("14b", "14B", 14.8e9, _sizes(Q4_K_M=9.0, Q5_K_M=10.5, Q6_K=12.1, Q8_0=15.7)),
        _small_qwen3(
            "8b", "8B", 8.19e9, _sizes(Q4_K_M=5.03, Q5_K_M=5.85, Q6_K=6.73, Q8_0=8.71), ("qwen3",)
        ),
        _small_qwen3("4b", "4B", 4.02e9, _sizes(Q4_K_M=2.5, Q5_K_M=2.89, Q6_K=3.31, Q8_0=4.28)),
        _small_qwen3("1.7b", "1.7B", 1.72e9, _sizes(Q8_0=1.83)),
        _small_qwen3("0.6b", "0.6B", 0.6e9, _sizes(Q8_0=0.639)),
    )


def _small_qwen3(
    tag: str, size: str, n_params: float, sizes: dict[str, int], aliases: tuple[str, ...] = ()
) -> CatalogueModel:
    others = _sizes(Q4_K_M=1.11, Q6_K=1.42) if tag == "1.7b" else {}
    if tag == "0.6b":
        others = _sizes(Q4_K_M=0.397, Q6_K=0.495)
    return CatalogueModel(
        f"qwen3:{tag}",
        (
            Source(f"Qwen/Qwen3-{size}-GGUF", sizes),
            Source(f"unsloth/Qwen3-{size}-GGUF", others),
        ),
        n_ctx_train=40960,
        n_params=n_params,
        license="apache-2.0",
        aliases=aliases,
    )


def _qwen2() -> tuple[CatalogueModel, ...]:
    return (
        CatalogueModel(
            "qwen2:7b",
            (
                Source(
                    "Qwen/Qwen2-7B-Instruct-GGUF",
                    _sizes(Q4_K_M=4.68, Q5_0=5.32, Q5_K_M=5.44, Q6_K=6.25, Q8_0=8.1, F16=15.2),
                ),
            ),
            n_ctx_train=32768,
            n_params=7.62e9,
            license="apache-2.0",
            aliases=("qwen2", "qwen2:7b-instruct"),
        ),
        CatalogueModel(
            "qwen2.5:7b",
            (
                Source(
                    "Qwen/Qwen2.5-7B-Instruct-GGUF",
                    _sizes(Q3_K_M=3.81, Q4_K_M=4.68, Q5_K_M=5.44, Q6_K=6.25, Q8_0=8.1, F16=15.2),
                ),
                Source("bartowski/Qwen2.5-7B-Instruct-GGUF", _sizes(Q4_0=4.44, IQ4_XS=4.22)),
            ),
            n_ctx_train=32768,
            n_params=7.62e9,
            license="apache-2.0",
            aliases=("qwen2.5", "qwen2.5:7b-instruct"),
        ),
    )


def _phi3() -> CatalogueModel:
    return CatalogueModel(
        "phi-3",
        (
            Source("microsoft/Phi-3-mini-4k-instruct-gguf", _sizes(Q4=2.39, F16=7.64)),
            Source(
                "bartowski/Phi-3-mini-4k-instruct-GGUF",
                _sizes(Q4_K_M=2.39, Q5_K_M=2.82, Q6_K=3.14, Q8_0=4.06),
            ),
        ),
        n_ctx_train=4096,
        n_params=3.82e9,
        license="mit",
        aliases=("phi3", "phi3:mini", "phi3:3.8b", "phi3:mini-4k", "phi-3:mini", "phi-3-mini"),
    )
