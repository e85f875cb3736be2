"""Tests of what is deployed: images, chart, and a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parents[1] / folder) for folder in ("scripts", "deploy/images"))]
