# A namespace on the host's kernel: the same layout by a mount namespace of its own.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmpfs "$lab_dir/over"
mkdir "$lab_dir/over/up" "$lab_dir/over/work" "$lab_dir/over/root"
root=$lab_dir/over/root
mount -t overlay overlay -o "lowerdir=$lab_root,upperdir=$lab_dir/over/up,workdir=$lab_dir/over/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$lab_dir" "$root/lab"
mount --rbind / "$root/host"
exec chroot "$root" /bin/sh /lab/boot
