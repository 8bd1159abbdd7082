#!/bin/sh
# Makes Debian packages of programs that are built already.
#
#   build-deb.sh BINARIES OUTPUT
#
# BINARIES: where cargo put `adit` and `adit-realserver`. OUTPUT: what is in there is replaced.
# DEB_COMPRESSION says how they are packed, as dpkg-deb takes it; default: xz.
#
# Packages need the C library of the machine that they were made on, or a newer one: make them on the
# oldest release they are for.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
BINARIES=$(cd "$1" && pwd)
SOURCE=$top
output=$2

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")
packaged=$(dpkg-parsechangelog -l "$top/packaging/debian/changelog" -S Version)
if [ "${packaged%-*}" != "$version" ]; then
    echo "build-deb.sh: packaging/debian/changelog has $packaged, Cargo.toml $version" >&2
    exit 1
fi

# A tree of its own, since debhelper writes beside its rules.
rm -rf "$output"
mkdir -p "$output/source"
cp -R "$top/packaging/debian" "$top/docs" "$top/README.md" "$top/CHANGELOG.md" "$output/source/"
"$top/packaging/licences.sh" >"$output/source/THIRD-PARTY"

# Variables of a make that runs this are not meant for the one in there.
unset MAKEFLAGS MFLAGS MAKELEVEL
export BINARIES SOURCE
cd "$output/source"
# Packages of debugging symbols would hold line numbers only.
DEB_BUILD_OPTIONS="noautodbgsym ${DEB_BUILD_OPTIONS:-}" \
    dpkg-buildpackage --build=binary --no-sign >"../build.log" 2>&1 || { cat ../build.log >&2; exit 1; }
cd ..
rm -r source
ls "$PWD"/*.deb
