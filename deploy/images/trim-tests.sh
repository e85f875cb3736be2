#!/bin/sh
# Drop the tests that packages bring along (50 MB beside NumPy and ONNX); nothing of the suite imports them.
set -eu
packages=$(echo /opt/tinymlaas/lib/python3.*/site-packages)
find "$packages/numpy" -type d -name tests -prune -exec rm -rf {} +
rm -rf "$packages/onnx/backend/test" "$packages/Crypto/SelfTest"
/opt/tinymlaas/bin/python -c "import numpy, onnx, Crypto"
