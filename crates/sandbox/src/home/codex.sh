#!/bin/sh
# Written once by ChoirOS because there was no such file; it is yours, change it as you like.
#
# Codex reads the address of its provider from its configuration only, and the gateway's
# differs from command to command. This gives it to the Codex that comes next in PATH.

base="${OPENAI_BASE_URL:-${CHOIR_PROVIDER_GATEWAY_BASE_URL:+$CHOIR_PROVIDER_GATEWAY_BASE_URL/openai}}"
set -f
IFS=:
for dir in $PATH; do
    next="$dir/codex"
    if [ -f "$next" ] && [ -x "$next" ] && ! [ "$next" -ef "$0" ]; then
        # Without a gateway there is no address to give.
        [ -n "$base" ] || exec "$next" "$@"
        exec "$next" -c "model_providers.choir.base_url=\"$base\"" "$@"
    fi
done
echo "codex: it is not installed here; mount it with sandbox.mounts, or install it in this sandbox" >&2
exit 127
