#!/bin/sh
# Removes one lab run: every process in its namespaces, the namespaces, its directory.
#
#   cleanup.sh PREFIX DIR <PIPE
#
# Standard input is a pipe whose other end the lab's process holds. Its end of file means that the
# lab is over, whether it ended well, panicked, was interrupted or was killed, so that one
# piece of code cleans up after all of them.
prefix=$1
dir=$2
cat >/dev/null

namespaces() { ls /run/netns 2>/dev/null | grep "^$prefix-"; }

round=0
while [ $round -lt 100 ]; do
    pids=$(for name in $(namespaces); do ip netns pids "$name"; done)
    [ -n "$pids" ] || break
    kill -9 $pids 2>/dev/null
    round=$((round + 1))
    sleep 0.02
done
for name in $(namespaces); do ip netns del "$name"; done
rm -rf --one-file-system "$dir"
