#!/bin/sh
# Steps of the build stage of the Python images; the last stage copies /opt/tinymlaas, and what root.py collected.
#   install.sh lock FILE...     packages of lock files, each checked by its hash, into a virtual environment
#   install.sh parts FOLDER...  parts of this tree, built as wheels and installed without their dependencies
#   install.sh compile          bytecode of all that is installed, by source hash (PEP 552): the same sources give the same bytes
#   install.sh sbom NAME [ROOT] what is in the image, whose root is that folder, as /opt/tinymlaas/sbom.cdx.json (CycloneDX 1.6)
# /build/cache, a cache mount, spares the images after the first their downloads. The package index is the one that pip is told of by
# the surroundings of the build (pip.conf, PIP_INDEX_URL); nothing of it gets into the image.
set -eu
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/build/cache/pip
export UV_CACHE_DIR=/build/cache/uv UV_LINK_MODE=copy UV_NO_CONFIG=1
action=$1
shift
python=/opt/tinymlaas/bin/python
# pip's value of a setting, of the environment first; of several values a line each.
setting() { python3 -m pip config list | sed -n "s/^[a-z:]*\.$1='\(.*\)'$/\1/p" | head -n 1 | sed 's/\\n/\n/g; s/^\n//'; }
listed() { setting "$1" | tr -s '\n ' "$2" | sed "s/$2\$//"; }
case $action in
lock)
    python3 -m pip install --quiet --target /build/tools --require-hashes -r /build/requirements-tools.lock
    # uv has names of its own for pip's settings, and takes one that is empty for one that is given.
    tell() { [ -z "$2" ] || export "$1=$2"; }
    tell UV_DEFAULT_INDEX "$(setting index-url)"
    tell UV_INDEX "$(listed extra-index-url ' ')"
    tell UV_INDEX_STRATEGY "${UV_INDEX:+unsafe-best-match}" # as pip does: the locks' hashes say which package it is
    tell UV_FIND_LINKS "$(listed find-links ,)"
    tell UV_INSECURE_HOST "$(listed trusted-host ' ')"
    tell SSL_CERT_FILE "$(setting cert)"
    /build/tools/bin/uv pip install --quiet --target /build/tools -r /build/requirements-build.txt
    python3 -m venv --without-pip /opt/tinymlaas
    for lock in "$@"; do
        /build/tools/bin/uv pip install --quiet --python $python --no-deps --require-hashes -r "$lock"
    done
    ;;
parts)
    for part in "$@"; do
        (cd "/build/$part" && PYTHONPATH=/build/tools python3 -m hatchling build -t wheel -d /build/wheels)
    done
    python3 -m pip --python $python install --quiet --no-deps --no-index --no-compile /build/wheels/*.whl
    ;;
compile)
    # A package's file may be for another Python: it stays as it is.
    $python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/tinymlaas/lib || true
    ;;
sbom)
    $python /build/sbom.py "$@" >/opt/tinymlaas/sbom.cdx.json
    ;;
*)
    echo "install.sh: unknown step $action" >&2
    exit 2
    ;;
esac
