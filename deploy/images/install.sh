#!/bin/sh
# Steps of the build stage of the Python images; the last stage copies /opt/tinymlaas, and what root.py collected.
#   install.sh lock FILE...     packages of lock files, each checked by its hash, into a virtual environment
#   install.sh parts FOLDER...  parts of this tree, built as wheels and installed without their dependencies
#   install.sh sbom NAME [ROOT] what is in the image, whose root is that folder, as /opt/tinymlaas/sbom.cdx.json (CycloneDX 1.6)
# pip takes its index from the surroundings of the build (pip.conf, PIP_INDEX_URL); nothing of it gets into the image.
set -eu
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
action=$1
shift
python=/opt/tinymlaas/bin/python
case $action in
lock)
    python3 -m venv --without-pip /opt/tinymlaas
    for lock in "$@"; do
        python3 -m pip --python $python install --quiet --no-cache-dir --no-deps --require-hashes -r "$lock"
    done
    ;;
parts)
    python3 -m pip install --quiet --no-cache-dir --target /build/tools -r /build/requirements-build.txt
    for part in "$@"; do
        PYTHONPATH=/build/tools python3 -m pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation \
            -w /build/wheels "/build/$part"
    done
    python3 -m pip --python $python install --quiet --no-deps --no-index /build/wheels/*.whl
    ;;
sbom)
    $python /build/sbom.py "$@" >/opt/tinymlaas/sbom.cdx.json
    ;;
*)
    echo "install.sh: unknown step $action" >&2
    exit 2
    ;;
esac
