#!/bin/sh
# What the tests of tiny guests call gcc for: assemble one file and link it. No compiler is here.
set -eu
output=a.out flags=
while [ $# -gt 1 ]; do
    case $1 in
    -o) output=$2 && shift ;;
    -Wl,*) flags="$flags $(echo "${1#-Wl,}" | tr , ' ')" ;;
    -nostdlib | -static) flags="$flags $1" ;;
    *) echo "gcc.sh: $1 is not known here" >&2 && exit 1 ;;
    esac
    shift
done
as --64 -o "$output.o" "$1"
# shellcheck disable=SC2086 # several flags
ld $flags -o "$output" "$output.o"
rm "$output.o"
