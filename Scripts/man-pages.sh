#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Finishes the manual pages that swift-argument-parser's plugin has made: names with a dash (man
# martlet-run), no page for "help", and the defaults of options, which --help has and the plugin
# leaves out.
#
# usage: Scripts/man-pages.sh PROGRAM PAGES DIRECTORY

set -eu
program=$1 pages=$2 directory=$3
rm -rf "$directory"
mkdir -p "$directory"

# "-option" and its default, of each option that has one.
defaults() {
  COLUMNS=1000 "$program" "$@" --help | awk '
    /^  --/ { option = substr($1, 2) }
    option != "" && match($0, /\(default: [^)]*\)/) {
      print option "\t" substr($0, RSTART, RLENGTH)
      option = ""
    }'
}

# The page of a command, given as its words.
page() {
  name=$(echo martlet "$@" | tr ' ' .)
  defaults "$@" >"$directory/defaults"
  awk -F '\t' '
    FILENAME == ARGV[1] { text[$1] = $2; next }
    /^\.Xr martlet[.a-z]*\.help / { next }
    /^\.(Xr|Dt) / {
      names = substr($0, 5)
      gsub(/\./, "-", names)
      $0 = substr($0, 1, 4) names
    }
    /^\.It Fl / { split($0, words, " "); option = words[3] }
    /^[^.]/ && option in text {
      if (index($0, "(default: ") == 0) $0 = $0 " " text[option]
      seen[option] = 1
      option = ""
    }
    { print }
    END {
      for (option in text) if (!(option in seen)) {
        print "man-pages: the page has no -" option >"/dev/stderr"
        exit 1
      }
    }' "$directory/defaults" "$pages/$name.1" >"$directory/$(echo "$name" | tr . -).1"
  rm "$directory/defaults"
}

page
for command in run kvm doctor; do page $command; done
for file in vmcs vmcb; do page doctor $file; done
