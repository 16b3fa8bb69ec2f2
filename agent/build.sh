#!/bin/sh
# Build the agent, for size: agent/build.sh [ARCH] -> imagegen/agents/mayfly-agent.ARCH (scripts/rustc-static has the rest)
exec "$(dirname "$0")/../scripts/rustc-static" agent s "$@"
