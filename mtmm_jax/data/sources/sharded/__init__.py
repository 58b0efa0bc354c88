"""Tables packed into shards, and the source that reads them.

stream   a table's rows, one after the other, in bounded memory
plan     one pass: splits and labels of all rows, what inputs learn from a sample of them
write    a second pass, in any number of parts: files decoded, rows laid out in shards
source   `{"kind": "packed", "path": ...}`: rows read by their place
"""

from mtmm_jax.data.sources.sharded.plan import load_plan, make_plan, save_plan
from mtmm_jax.data.sources.sharded.source import packed
from mtmm_jax.data.sources.sharded.stream import open_stream
from mtmm_jax.data.sources.sharded.write import pack_part

__all__ = ["load_plan", "make_plan", "open_stream", "pack_part", "packed", "save_plan"]
