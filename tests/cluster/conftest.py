"""Tests of what is deployed: images, chart, and a cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parents[1] / folder) for folder in ("scripts", "deploy/images"))]


def pytest_sessionstart() -> None:
    """Build a kit before any test asks for its tools: etcd, the API server, helm, kubeconform."""
    import cluster_kit

    if cluster_kit.ASKED and not os.environ.get("KUBECONFIG"):
        kit = cluster_kit.usable_kit()
        if not isinstance(kit, str):
            cluster_kit.build(kit)
