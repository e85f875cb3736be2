"""Entry of the child process: `python -m tinymlaas_profiler.jobs KIND FOLDER`."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from tinymlaas_profiler.errors import ProfilerError

KINDS = ("native", "tflite", "onnx", "convert")


def main(kind: str, folder: str) -> int:
    """Run one job on the files of `folder` and leave its result there; 0 also when the job reported an error."""
    root = Path(folder)
    if kind not in KINDS:
        print(f"unknown job {kind}", file=sys.stderr)
        return 2
    request = json.loads((root / "request.json").read_text())
    count = len(list(root.glob("in-*")))
    blobs = [(root / f"in-{index}").read_bytes() for index in range(count)]
    job = importlib.import_module(f"tinymlaas_profiler.jobs.{kind}")
    try:
        report, outputs = job.run(request, blobs)
    except ProfilerError as error:
        result: dict[str, Any] = {
            "error": {
                "reason": error.reason,
                "message": str(error),
                "metadata": error.metadata,
                "help": error.help,
            }
        }
    else:
        for index, output in enumerate(outputs):
            (root / f"out-{index}").write_bytes(output)
        result = {"report": report, "blobs": len(outputs)}
    (root / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
