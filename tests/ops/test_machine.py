from __future__ import annotations

import pytest

from server.ops.machine import available_memory, cpu_flags

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    def write(**files: str):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write(proc__meminfo=f"MemTotal: 1 kB\nMemAvailable:  {8 * GIB // 1024} kB\n")
    return write


def put(root, path, text):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_system_tells(system):
    assert available_memory(system()) == 8 * GIB


def test_the_control_group_of_a_container_counts(system):
    root = system()
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", str(4 * GIB))
    put(root, "sys/fs/cgroup/memory.current", str(3 * GIB))
    put(root, "sys/fs/cgroup/memory.stat", f"anon 5\ninactive_file {GIB}\n")
    assert available_memory(root) == 2 * GIB


def test_the_tightest_group_above_counts(system):
    root = system()
    put(root, "proc/self/cgroup", "0::/a/b\n")
    put(root, "sys/fs/cgroup/a/b/memory.max", "max")
    put(root, "sys/fs/cgroup/a/b/memory.current", "1")
    put(root, "sys/fs/cgroup/a/memory.max", str(GIB))
    put(root, "sys/fs/cgroup/a/memory.current", str(GIB // 4))
    assert available_memory(root) == GIB - GIB // 4


def test_version_one_groups_count_too(system):
    root = system()
    put(root, "proc/self/cgroup", "3:cpu:/x\n5:memory,foo:/job\n0::/\n")
    put(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(3 * GIB))
    put(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", str(GIB))
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", str(GIB))
    assert available_memory(root) == 2 * GIB


def test_a_group_over_its_limit_has_no_room(system):
    root = system()
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", "10")
    put(root, "sys/fs/cgroup/memory.current", "12")
    assert available_memory(root) == 0


def test_nothing_to_read_is_not_known(tmp_path):
    assert available_memory(tmp_path) is None
    assert cpu_flags(tmp_path) == frozenset()


@pytest.mark.parametrize("name", ["flags\t\t", "Features\t"])
def test_cpu_flags_of_both_kinds_of_machines(system, name):
    root = system(proc__cpuinfo=f"processor : 0\n{name}: fma avx2 asimd\n")
    assert cpu_flags(root) == {"fma", "avx2", "asimd"}
