#!/usr/bin/env bash
# Runs the CPU kernels for 64-bit ARM under emulation and compares every bit with this x86-64 machine's.
# Needs Debian's gcc-aarch64-linux-gnu and qemu-user. Results differ if this exits with anything but 0.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source_dir=$here/../../../../backends/cpu/portable_gla_cpu/csrc
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$tool" >/dev/null || { echo "missing: $tool" >&2; exit 2; }
done
flags=(-std=gnu11 -O3 -ffp-contract=off -fno-math-errno -I "$source_dir")
build_for() { # compiler, output, then isa=flags ...
    local compiler=$1 output=$2 objects=()
    shift 2
    for target in "$@"; do
        for part in forward backward decode; do
            # shellcheck disable=SC2086
            "$compiler" "${flags[@]}" ${target#*:} -DGLA_ISA="${target%%:*}" -c "$source_dir/$part.c" \
                -o "$build/$output-${target%%:*}-$part.o"
            objects+=("$build/$output-${target%%:*}-$part.o")
        done
    done
    "$compiler" "${flags[@]}" "$here/same_bits.c" "$source_dir"/{library,threads}.c "${objects[@]}" -static -lpthread -lm \
        -o "$build/$output"
}
build_for gcc x86 "avx2:-mavx2 -mfma -mf16c" "avx512:-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
build_for aarch64-linux-gnu-gcc arm "neon:"
"$build/x86" avx2 >"$build/avx2.txt"
"$build/x86" >"$build/best.txt"
qemu-aarch64 "$build/arm" >"$build/neon.txt"

diff "$build/avx2.txt" "$build/best.txt"
diff "$build/avx2.txt" "$build/neon.txt" && echo "the same bits"
