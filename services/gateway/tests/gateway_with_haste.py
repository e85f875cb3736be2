"""The gateway, looking every `TINYMLAAS_TEST_UNBEGUN_SECONDS` for what was accepted and never began."""

from __future__ import annotations

import os

from tinymlaas_gateway.__main__ import main
from tinymlaas_gateway.engine import peers

if __name__ == "__main__":
    peers.UNBEGUN_SECONDS = float(os.environ["TINYMLAAS_TEST_UNBEGUN_SECONDS"])
    main()
