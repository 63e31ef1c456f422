from __future__ import annotations

from server.catalog.plan import Allocated
from server.llama.allocated import parse_allocated

MIB = 1 << 20

LOG = """\
load_tensors:   CPU_Mapped model buffer size =   418.00 MiB
load_tensors:   CPU_REPACK model buffer size =    10.50 MiB
load_tensors:        CUDA0 model buffer size = 18424.25 MiB
load_tensors:    CUDA_Host model buffer size =     1.00 MiB
llama_context:  CUDA_Host  output buffer size =     2.32 MiB
llama_kv_cache:      CUDA0 KV buffer size =  4096.00 MiB
llama_kv_cache:        CPU KV buffer size =   128.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =     4.00 MiB
sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB
sched_reserve:      CUDA0 compute buffer size =   306.75 MiB
""".splitlines()


def test_every_buffer_is_counted_on_its_side():
    assert parse_allocated(LOG) == Allocated(
        weights_gpu=round(18424.25 * MIB),
        weights_cpu=round(429.5 * MIB),
        kv_gpu=4100 * MIB,
        kv_cpu=128 * MIB,
        compute_gpu=round(306.75 * MIB),
        compute_cpu=20 * MIB,
        output_cpu=round(2.32 * MIB),
    )


def test_a_compute_buffer_counts_as_it_was_reserved_last():
    assert parse_allocated([*LOG, LOG[-1].replace("306.75", "10.00")]).compute_gpu == 10 * MIB


def test_other_lines_say_nothing():
    assert parse_allocated(["", "load_tensors: offloaded 65/65 layers to GPU"]) == Allocated()
