"""Several CPU devices, strict dtype promotion, programs compiled in a hurry and cached."""

import ctypes
import gc
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {
    # Devices that wait for each other are threads here; on a busy machine one may come late, and
    # XLA ends the process after forty seconds.
    "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
    # The suite compiles far longer than it computes: these more than halve it.
    "--xla_backend_optimization_level": 0,
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_parallel_codegen_split_count": 1,
}
if metadata.version("jaxlib").startswith("0.10."):  # a flag that a release lacks ends the process
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
_GIVEN = os.environ.get("XLA_FLAGS", "")
_MISSING = [f"{name}={value}" for name, value in _FLAGS.items() if name not in _GIVEN]
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *_MISSING]).strip()

# The key that signs runs is the tests' own.
os.environ.setdefault("MTMM_JAX_KEY", str(Path(tempfile.gettempdir()) / "mtmm-jax-tests-key"))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "mtmm-jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

from absl import flags  # noqa: E402

if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags
    flags.FLAGS(sys.argv[:1])


@pytest.fixture
def uncached():
    """Keeps programs out of the compile cache: XLA has ended the process while it wrote one of
    several CPU devices, and while it read one back."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module", autouse=True)
def _programs_end_with_their_file():
    """A whole suite's programs fill gigabytes, and all mappings that a process may have."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform.startswith("linux"):
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


@pytest.fixture(scope="session", autouse=True)
def _decoded_files_are_temporary(tmp_path_factory):
    """What tests decode once is of no use to anybody later."""
    from mtmm_jax.data.sources.manifest import decoded

    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("decoded")
        patch.setattr(decoded, "default_root", lambda: root)
        yield


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


LONGEST = (
    "test_colabs.py",
    "test_commands.py",
    "test_blocks.py",
    "test_engines.py",
    "test_explanation.py",
    "test_recipes.py",
    "test_intermediates.py",
    "test_fusions.py",
    "test_sweep.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first: none is left at the end for one worker alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
