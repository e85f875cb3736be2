"""The gateway with a clock that a test sets: it stands still at the seconds since 1970 in the file `TINYMLAAS_TEST_CLOCK`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from tinymlaas_gateway import app
from tinymlaas_gateway.__main__ import main

FILE = Path(os.environ["TINYMLAAS_TEST_CLOCK"])


def clock() -> float:
    """Seconds since 1970, as the test sees them."""
    return float(FILE.read_text())


if __name__ == "__main__":
    app.Context = partial(app.Context, clock=clock)  # type: ignore[misc, assignment]
    main()
