#!/bin/sh
# Runs a command in a new network namespace, where the loopback interface is off
# at first.
ip link set lo up && exec "$@"
