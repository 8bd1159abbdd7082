#!/bin/sh
# Prints which crates the programs contain, and the terms that come with each: whoever passes the
# programs on has to pass these on too.
#
#   licences.sh
#
# Crates that only build or test something are no part of the programs.
set -eu
cd "$(dirname "$0")/.."

# Sources are there once something was built. (Vendored ones lie elsewhere: CRATES says where.)
crates=${CRATES:-$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/)}
listed=$(${CARGO:-cargo} tree --locked --offline -p adit -p adit-realserver --edges normal,no-proc-macro \
    --prefix none --no-dedupe --format '{p}|{l}|{r}' | grep -v -e '(/' -e '^$' | LC_ALL=C sort -u)

[ -n "$listed" ] || { echo "licences.sh: cargo names no crates" >&2; exit 1; }
echo "The programs of this package contain these crates:"
echo
echo "$listed" | while IFS='|' read -r crate terms home; do
    echo "$crate: $terms; $home"
done
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT
echo "$listed" | while IFS='|' read -r crate _; do
    name=${crate%% *}
    version=${crate##* v}
    version=${version%% *}
    directory=
    for place in $crates; do
        [ ! -d "$place/$name-$version" ] || directory=$place/$name-$version
    done
    [ -n "$directory" ] || { echo "licences.sh: no source of $crate" >&2; exit 1; }
    for file in "$directory"/LICEN[CS]E* "$directory"/COPYING* "$directory"/COPYRIGHT* "$directory"/NOTICE*; do
        [ -f "$file" ] || continue
        what="$crate, $(basename "$file")"
        text=$(sha256sum <"$file")
        # Most texts of the Apache licence are the same to the letter.
        if first=$(grep -F "$text" "$seen"); then
            printf '\n\n==== %s: as %s\n' "$what" "${first#"$text "}"
            continue
        fi
        echo "$text $what" >>"$seen"
        printf '\n\n==== %s\n\n' "$what"
        cat "$file"
    done
done
