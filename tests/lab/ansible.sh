#!/bin/sh
# Prints the folder with ansible-playbook, ansible-lint and yamllint in the versions of
# ansible/requirements.txt. Where they are not there yet, they are installed into the user's cache.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
requirements=$top/ansible/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/adit
version=$(sed -n 's/^ansible-core==//p' "$requirements")
venv=$cache/ansible-$version-$(cksum <"$requirements" | cut -d ' ' -f 1)

mkdir -p "$cache"
# One at a time; who waited finds it done. The mark is set last, so that half of it is nobody's.
exec 9>"$cache/ansible.lock"
flock 9
if [ ! -e "$venv/complete" ]; then
    echo "installing Ansible $version into $venv: half a minute, once" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    touch "$venv/complete"
fi
echo "$venv/bin"
