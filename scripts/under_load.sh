#!/usr/bin/env bash
# The tests where they must hold as well: beside other work, in random order, on one core, on an old processor.
#
#   scripts/under_load.sh [RUNS]    RUNS times (3) beside two busy processes in random order, once on
#                                   one core, once without what came after AVX2
#   BUSY=0 scripts/under_load.sh    the same beside what the machine is busy with already
#
# A line a run: what it was, how long it took, what pytest said, and what failed; the others are run
# all the same. Logs are kept where the last line says.
set -euo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
busy=()
failed=0
trap '((${#busy[@]} == 0)) || kill "${busy[@]}"' EXIT

run() { # NAME COMMAND...
    local name=$1 begun=$SECONDS log="$logs/$1.log" status=0
    shift
    "$@" >"$log" 2>&1 || status=$?
    printf '%-12s %2d:%02d  %s\n' "$name" $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)) \
        "$(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -1 | tr -d =)"
    ((status == 0)) || { failed=1; grep -E '^(FAILED|ERROR)' "$log" || tail -3 "$log"; }
}

for ((i = 0; i < ${BUSY:-2}; i++)); do
    while :; do :; done &
    busy+=($!)
done
for ((i = 1; i <= ${1:-3}; i++)); do
    run "busy_$i" make test ARGS='-p randomly'
done
((${#busy[@]} == 0)) || kill "${busy[@]}"
busy=()
run one_core taskset -c 0 make test
run old_isa env ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 make test
((failed == 0)) && echo "all green; logs: $logs" || { echo "not green; logs: $logs"; exit 1; }
