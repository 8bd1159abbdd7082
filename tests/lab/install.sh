#!/bin/sh
# Installs what the lab needs on a Debian or Ubuntu machine; says nothing and does nothing when all
# of it is there.
set -eu

# A linker and a C++ compiler (the fuzzer's runtime); namespaces, wires and firewall; the recipe of
# the machines' root.
packages="build-essential iproute2 nftables ethtool kmod procps util-linux mmdebstrap debian-archive-keyring"
# Machines with a kernel of their own; distributions without it have kernels with ipip.
guests=user-mode-linux

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}
missing=
for package in $packages $guests; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
if ! apt-cache show "$guests" >/dev/null 2>&1; then
    missing=$(echo "$missing" | sed "s/ $guests//")
    [ -n "$missing" ] || exit 0
fi
# shellcheck disable=SC2086 # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
