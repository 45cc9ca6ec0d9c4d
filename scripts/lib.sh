# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
# Shared by the scripts beside it: messages, where things are, the Rust toolchain. To be sourced; it only defines.

# The repository, and the cargo target folder as an absolute path (CARGO_TARGET_DIR is relative to the caller's folder).
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
SELF=${0##*/}

if [ -t 1 ]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; else BOLD='' PLAIN=''; fi

# step TEXT: one line of progress. note TEXT: a detail of the step above it.
step() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '%s: %s\n' "$SELF" "$*" >&2; }
# die TEXT: one line that says what is wrong and what to do, then exit 1.
die() {
  warn "$@"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION MINIMUM: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The oldest Rust that builds this workspace, as Cargo.toml says.
rust_minimum() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml"; }

# rust_version: the version of the rustc that would be used, empty when there is none.
rust_version() { rustc --version 2>/dev/null | awk '{ print $2 }'; }

rust_is_new_enough() {
  local version
  version=$(rust_version)
  [ -n "$version" ] && at_least "${version%%-*}" "$(rust_minimum)"
}

# use_rust: puts a good enough toolchain first, when there is one. Fails when there is none.
use_rust() {
  [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  export PATH
  rust_is_new_enough && return
  # An older default (or a pinned one) must not stop a machine that also has a good `stable`.
  have rustup || return 1
  export RUSTUP_TOOLCHAIN=stable
  rust_is_new_enough && return
  unset RUSTUP_TOOLCHAIN
  return 1
}

# kill_tree PID [SIGNAL]: signals all descendants of PID, then PID itself. They are listed before the first is signalled:
# the children of a dead process are nobody's.
kill_tree() {
  local pids
  mapfile -t pids < <(descendants "$1")
  kill "-${2:-TERM}" "${pids[@]}" "$1" 2>/dev/null || true
}

descendants() {
  local child
  for child in $(ps -o pid= --ppid "$1" 2>/dev/null); do
    descendants "$child"
    echo "$child"
  done
}

# apt_get ARGUMENT...: quiet, unless it fails.
apt_get() {
  local log=$TARGET/tools/apt.log
  mkdir -p "${log%/*}"
  if DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 "$@" </dev/null >"$log" 2>&1; then return; fi
  tail -n 20 "$log" >&2
  return 1
}

# apt_apart FOLDER ARGUMENT...: apt-get with sources, lists and cache of its own, those in FOLDER, where sources.list is.
# Signatures are verified as ever.
apt_apart() {
  local APART
  apart "$1"
  apt_get "${APART[@]}" "${@:2}"
}

# apart FOLDER: leaves apt's options for that in APART.
apart() {
  mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
  APART=(-o Dir::Etc::SourceList="$1/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$1/lists"
    -o Dir::Cache="$1/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
}

# duration SECONDS: "1 min 5 s".
duration() {
  if [ "$1" -ge 60 ]; then printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}
