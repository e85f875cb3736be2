#!/bin/sh
# Compile ahead what would be compiled at first use, then drop zig's libraries (234 MB): only `zig cc --version` is asked later,
# which looks for its folder by lib/std/std.zig.
#   trim-zig.sh hook     the simulator's native observers
#   trim-zig.sh boards   these and the firmware of every virtual board, from /opt/tinymlaas/device
set -eu
python=/opt/tinymlaas/bin/python
export TINYMLAAS_CACHE_DIR=/opt/tinymlaas/cache TINYMLAAS_DEVICE_SOURCES=/opt/tinymlaas/device HOME=/tmp
$python -c "from tinymlaas_simulator import _hook; _hook.load()"
if [ "$1" = boards ]; then
    python3 $TINYMLAAS_DEVICE_SOURCES/loader/tools/fetch_monocypher.py
    $python -c "
from tinymlaas_device.boards import board_models
from tinymlaas_device.firmware_build import build_firmware
for model in board_models().values(): build_firmware(model)"
fi
chmod 755 /opt/tinymlaas/cache
zig=$($python -c "import ziglang, pathlib; print(pathlib.Path(ziglang.__file__).parent)")
rm -rf "$zig/lib" "$zig/doc"
mkdir -p "$zig/lib/std"
: >"$zig/lib/std/std.zig"
