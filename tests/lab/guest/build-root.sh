#!/bin/sh
# Builds the Debian root that real servers of the lab run on.
#
#   build-root.sh DIR
#
# DIR must not exist yet. Databases are initialised here, once, so that a guest only starts them.
# Whatever changes in here needs a new RECIPE in src/root.rs: it is part of the cache's key.
set -eu
dir=$1

packages=postgresql,iproute2,nftables,kmod,procps,iputils-ping,tcpdump,conntrack,ethtool,netcat-openbsd,ipvsadm,python3
# Of machines whose first process is systemd, which Ansible comes to by ssh.
packages=$packages,systemd-sysv,openssh-server,python3-apt

# postgresql-common would create a cluster with its own layout at installation: the one made
# below is smaller (1 MB segments), since a guest copies up every file that it writes to.
mmdebstrap --variant=minbase --include="$packages" \
    --aptopt='Acquire::Retries "3"' \
    --essential-hook='mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"' \
    --customize-hook='chroot "$1" install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/lab' \
    --customize-hook='chroot "$1" su postgres -c "/usr/lib/postgresql/15/bin/initdb --pgdata=/var/lib/postgresql/lab --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync --wal-segsize=1"' \
    --customize-hook='chroot "$1" pg_createcluster 15 main -- --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync --wal-segsize=1 >/dev/null' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook='mkdir -p "$1/lab" "$1/host" "$1/.over"' \
    bookworm "$dir"

# The guest kernel's modules come from the host's package, beside the kernel itself.
if [ -d /usr/lib/uml/modules ]; then
    mkdir -p "$dir/lib/modules"
    cp -a /usr/lib/uml/modules/. "$dir/lib/modules/"
    for release in $(ls "$dir/lib/modules"); do
        chroot "$dir" depmod "$release"
    done
fi
