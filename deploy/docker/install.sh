#!/bin/sh
# Installs one program into /opt/fedreid, and writes down what it consists of; run by the Dockerfile:
# install.sh PROGRAM TORCH TORCH_INDEX
set -eu
program=$1 torch=$2 torch_index=$3

case "$program-$torch" in
    coordinator-none) extra=coordinator-without-torch ;;
    coordinator-yes) extra=coordinator ;;
    silo-agent-yes) extra=agent ;;
    silo-agent-none) echo "a silo trains: it needs torch" >&2; exit 2 ;;
    *) echo "TORCH is yes or none, not $torch" >&2; exit 2 ;;
esac

set -- --no-cache-dir --constraint constraints.txt
if [ -n "$torch_index" ]; then
    # A CPU build has a local version, 2.15.0+cpu, which goes before the same one without.
    set -- "$@" --extra-index-url "$torch_index"
fi
/opt/tools/bin/pip --python /opt/fedreid/bin/python install "$@" ".[$extra]"

# The benchmark and tests are no part of an image, nor is the other program.
case "$program" in
    coordinator) other=silo_agent script=silo-agent ;;
    *) other=coordinator script=coordinator ;;
esac
site=$(/opt/fedreid/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -r "${site:?}/$other" "/opt/fedreid/bin/$script" /opt/fedreid/bin/fedreid-bench
# Nor are the tests, type stubs and compilers' inputs of what they are built on.
find "$site" -type d -name tests -prune -exec rm -r {} +
find "$site" \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -delete
rm -rf "$site/numpy/distutils" "$site/numpy/f2py" "$site/sqlalchemy/testing" /opt/fedreid/include

/opt/tools/bin/cyclonedx-py environment --output-file /opt/fedreid/sbom.cdx.json \
    /opt/fedreid/bin/python
