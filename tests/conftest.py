"""Several CPU devices, strict dtype promotion, and a compile cache shared by the workers."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Devices that wait for each other are threads here; on a busy machine one may come late, and XLA
# ends the process after forty seconds.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
if _PATIENCE.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_PATIENCE}".strip()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "mtmm-jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

from absl import flags  # noqa: E402

if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags
    flags.FLAGS(sys.argv[:1])
