#!/bin/bash
# All tests, in two streams side by side: those that start containers, and the unit tests on this Python and on 3.9, whose output comes
# when the others are through. Options go to pytest.
set -um # m: the second stream is a process group of its own, which ends with this script
cd "$(dirname "$0")/.."
pytest=(build/venv/bin/python -m pytest --durations=10)
log=$(mktemp)
{ "${pytest[@]}" tests/unit "$@"; first=$?; tests/bed/python39.sh && exit $first; } >"$log" 2>&1 &
trap 'kill -- -$! 2>&-; rm -f "$log"' EXIT
"${pytest[@]}" --ignore=tests/unit "$@"
containers=$?
wait $!
units=$?
cat "$log"
exit $((containers || units))
