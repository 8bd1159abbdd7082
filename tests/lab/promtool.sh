#!/bin/sh
# Prints where promtool is. Where there is none, it is taken out of the Debian or Ubuntu package
# into target/: installed as a package, it would bring a Prometheus that starts at once.
set -eu

if command -v promtool; then
    exit 0
fi
top=$(cd "$(dirname "$0")/../.." && pwd)
tools=$top/target/tools
if [ ! -x "$tools/promtool" ]; then
    mkdir -p "$tools"
    work=$(mktemp -d "$tools/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    if ! apt-get download -q prometheus >/dev/null 2>&1; then
        sudo=
        [ "$(id -u)" = 0 ] || sudo=sudo
        $sudo apt-get update -qq >&2
        apt-get download -q prometheus >&2
    fi
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool
    # In one step, so that nobody runs half of it.
    mv usr/bin/promtool "$tools/promtool"
fi
echo "$tools/promtool"
