#!/usr/bin/env bash
# Builds the kernels' self-tests, of inference and of training, at every level, runs each on a processor
# of its kind (aarch64 under qemu) and compares the bits of all results with the portable build's.
# Warnings are errors.
# Needs gcc, gcc-aarch64-linux-gnu and qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/../.."
export LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for tool in gcc aarch64-linux-gnu-gcc qemu-aarch64-static; do
    command -v "$tool" >/dev/null && continue
    echo "$tool is missing: apt install gcc gcc-aarch64-linux-gnu qemu-user-static" >&2
    exit 3
done

# The flags of setup.py, so that the shipped build is tested.
common=$(sed -n '/^COMMON = \[/,/^]/s/^ *"\(-[^"]*\)".*/\1/p' setup.py | grep -vxe -shared -e -fPIC)
level_flags() { sed -n "s/^ *\"$1\": \"\(-[^\"]*\)\",\$/\1/p; s/^${1^^} = \"\(-[^\"]*\)\"\$/\1/p" setup.py; }

# build NAME COMPILER FLAGS...: names that begin with training- are of the kernels of training
build() {
    local name=$1 compiler=$2 program=selftest
    shift 2
    [[ $name != training-* ]] || program=training
    # shellcheck disable=SC2086
    "$compiler" $common -Wall -Wextra -Werror "$@" "tests/arm64/$program.c" -o "$work/$name" -lm
}

# check NAME RUNNER COMPILER FLAGS...: builds and runs, two at a time; RUNNER "-" only builds
check() {
    local name=$1 runner=$2
    shift 2
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || true; done
    {
        build "$name" "$@"
        [ "$runner" = - ] || $runner "$work/$name" >"$work/$name.out"
        touch "$work/$name.good"
    } 2>"$work/$name.err" &
}

# check_level NAME RUNNER COMPILER FLAGS...: with the flags that setup.py has for it
check_level() {
    local name=$1 runner=$2 flags
    shift 2
    flags=$(level_flags "${name#training-}")
    [ -n "$flags" ] || { echo "setup.py has no flags for $name" >&2; exit 3; }
    # shellcheck disable=SC2086
    check "$name" "$runner" "$@" $flags
}

# has FLAG RUNNER: the runner if this processor has the flag
has() { grep -qw "$1" /proc/cpuinfo && echo "$2" || echo -; }

# Sanitizers want their addresses where they expect them, on kernels that spread them widely.
still=$(setarch -R true 2>/dev/null && echo "setarch -R" || echo env)
# The portable vectors are loops: inlined, each with its checks, they would take most of the time here.
calls="-O0 -Dalways_inline=unused"
sanitize="-g1 -fno-var-tracking-assignments -fno-sanitize-recover=all -fsanitize"

names=(portable portable-sanitized neon dotprod i8mm)
check portable env gcc
# shellcheck disable=SC2086
check portable-sanitized "$still" gcc $calls $sanitize=address,undefined
check_level neon "qemu-aarch64-static -cpu cortex-a72" aarch64-linux-gnu-gcc -static
check_level dotprod "qemu-aarch64-static -cpu neoverse-n1" aarch64-linux-gnu-gcc -static
check_level i8mm "qemu-aarch64-static -cpu max" aarch64-linux-gnu-gcc -static
# f32 has no level of its own beyond neon, which the other two compile to the same instructions.
names+=(training-portable training-portable-sanitized training-neon training-i8mm)
check training-portable env gcc
# shellcheck disable=SC2086
check training-portable-sanitized "$still" gcc $calls $sanitize=address,undefined
check_level training-neon "qemu-aarch64-static -cpu cortex-a72" aarch64-linux-gnu-gcc -static
check_level training-i8mm "qemu-aarch64-static -cpu max" aarch64-linux-gnu-gcc -static
if [ "$(uname -m)" = x86_64 ]; then
    names+=(avx2 avx2-sanitized avx2-threads avxvnni avx512 training-avx2 training-avx512)
    check_level avx2 "$(has avx2 env)" gcc
    # shellcheck disable=SC2046,SC2086
    check avx2-sanitized "$(has avx2 "$still")" gcc $(level_flags avx2) -O1 $sanitize=address,undefined
    # shellcheck disable=SC2046,SC2086
    check avx2-threads "$(has avx2 "$still")" gcc $(level_flags avx2) -O1 $sanitize=thread
    check_level avxvnni "$(has avx_vnni env)" gcc
    check_level avx512 "$(has avx512_vnni env)" gcc
    check_level training-avx2 "$(has avx2 env)" gcc
    check_level training-avx512 "$(has avx512f env)" gcc
fi
wait

passed=0 failed=0
for name in "${names[@]}"; do
    verdict=FAILED measure=portable
    [[ $name != training-* ]] || measure=training-portable
    if [ -e "$work/$name.good" ]; then
        if [ ! -e "$work/$name.out" ]; then
            verdict="compiles (this processor cannot run it)"
        elif cmp -s "$work/$measure.out" "$work/$name.out"; then
            verdict="$(wc -l <"$work/$name.out") results, the same bits"
        fi
    fi
    printf '%-20s %s\n' "$name" "$verdict"
    if [ "$verdict" = FAILED ]; then
        failed=$((failed + 1))
        head -n 20 "$work/$name.err" >&2
        [ ! -e "$work/$name.out" ] || diff "$work/$measure.out" "$work/$name.out" >&2 || true
    else
        passed=$((passed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
