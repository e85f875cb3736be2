"""The gateway with other limits than its own: those in the JSON object `TINYMLAAS_TEST_LIMITS`."""

from __future__ import annotations

import json
import os
from functools import partial

from tinymlaas_gateway import app
from tinymlaas_gateway.__main__ import main
from tinymlaas_gateway.engine.context import Limits

if __name__ == "__main__":
    app.__dict__["Limits"] = partial(Limits, **json.loads(os.environ["TINYMLAAS_TEST_LIMITS"]))
    main()
