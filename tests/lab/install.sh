#!/bin/sh
# Installs Debian or Ubuntu packages; says nothing and does nothing when all of them are there.
#
#   install.sh [build|lab|bench|deb]
#
# build: what cargo needs. lab (the default): that, and what the lab, the demo and the tests run.
# bench: that, and what counts instructions. deb: what cargo needs, and what makes and checks packages.
set -eu

# A linker and libc's and the kernel's headers, a C++ compiler (the fuzzer's runtime), make; what
# cargo trusts.
build="build-essential ca-certificates"
# Namespaces, wires and firewall (ip; nft; ethtool; modprobe; sysctl; nsenter, unshare,
# prlimit, setpriv; mount); the recipe of the machines' root, whose keyring mmdebstrap reads by
# gpg; man, for the test of the installation; a routing daemon; of hosts that Ansible comes to, a disk, a
# key and the way in, and what Ansible is installed by.
lab="e2fsprogs openssh-client python3-venv iproute2 nftables ethtool kmod procps util-linux mount mmdebstrap gpg debian-archive-keyring man-db bird2"
# Machines with a kernel of their own; distributions without it have kernels with ipip.
guests=user-mode-linux
# callgrind
bench=valgrind

# dpkg's own tools are among what cargo needs.
deb="debhelper lintian"

case "${1:-lab}" in
    build) packages=$build guests= ;;
    lab) packages="$build $lab" ;;
    bench) packages="$build $lab $bench" ;;
    deb) packages="$build $deb" guests= ;;
    *) echo "usage: $0 [build|lab|bench|deb]" >&2; exit 2 ;;
esac

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}
missing=
for package in $packages $guests; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
# Where lists of packages are and name no guests, asking again changes nothing.
if [ "$missing" = " $guests" ] && ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 &&
    ! apt-cache show "$guests" >/dev/null 2>&1; then
    exit 0
fi

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
if [ -n "$guests" ] && ! apt-cache show "$guests" >/dev/null 2>&1; then
    missing=$(echo "$missing" | sed "s/ $guests//")
    [ -n "$missing" ] || exit 0
fi
# shellcheck disable=SC2086 # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
# Tests start BIRDs of their own, in namespaces: the package's service is to leave the computer's
# routes alone.
case " $missing " in
    *" bird2 "*)
        if [ -d /run/systemd/system ]; then
            $sudo systemctl disable --now --quiet bird.service
        fi
        ;;
esac
