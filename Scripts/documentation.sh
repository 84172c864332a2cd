#!/bin/sh
# The libraries' public interface as a DocC archive: Scripts/documentation.sh [FOLDER [BUILD]]
#
# Takes the modules that a build has made (the release build unless BUILD names another): X86, X86Decoder
# and InterruptChips, which stand alone; the others' interfaces are internal to the package. A warning of
# DocC is an error: a parameter that has no text, a link that leads nowhere.
set -eu
cd "$(dirname "$0")/.."
output=${1:-.build/documentation}
build=${2:-.build/release}
graphs=$(mktemp -d)
trap 'rm -rf "$graphs"' EXIT

command -v docc >/dev/null || {
  echo "documentation.sh: docc is missing; it comes with the Swift toolchain" >&2
  exit 1
}
for module in X86 X86Decoder InterruptChips; do
  [ -e "$build/Modules/$module.swiftmodule" ] || {
    echo "documentation.sh: $module is not built; run make build" >&2
    exit 1
  }
  swift symbolgraph-extract -module-name "$module" -I "$build/Modules" \
    -target x86_64-unknown-linux-gnu -minimum-access-level public -skip-synthesized-members \
    -output-dir "$graphs"
done
rm -rf "$output"
docc convert --additional-symbol-graph-dir "$graphs" --fallback-display-name Martlet \
  --fallback-bundle-identifier martlet --output-path "$output" --warnings-as-errors
echo "$output"
