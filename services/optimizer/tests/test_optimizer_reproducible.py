"""CP-DETERMINISM-001, -002: the same request gives the same bytes in processes as unlike as two machines."""

from __future__ import annotations

from pathlib import Path

from tinymlaas_pluginkit.unlike import in_unlike_processes

ZOO = Path(__file__).parents[3] / "zoo"
CODE = """
import hashlib
from pathlib import Path
import numpy as np
from tinymlaas_optimizer.optimize import optimize
folder = Path({folder!r})
with np.load(folder / "samples.npz") as file:
    samples = {{"input": file["input_float"][:8]}}
made = optimize((folder / "ad_float.onnx").read_bytes(), samples)
print(hashlib.sha256(made.model).hexdigest())
"""


def test_unlike_processes_quantize_to_the_same_bytes(tmp_path: Path) -> None:
    first, second = in_unlike_processes(CODE.format(folder=str(ZOO / "ad")), tmp_path)
    assert first == second
    assert len(first.strip()) == 64
