#!/bin/sh
# Steps of eight minutes until all is done, or until a step fails: tools/gpu/unattended.sh --root DATA [further options of step.py]
here=$(dirname "$0")
while :; do
    python "$here/step.py" "$@"
    status=$?
    [ $status -eq 75 ] || exit $status
done
