# shellcheck shell=bash disable=SC2034
# What the quickstart asks of the machine, and where it keeps its things. To be sourced after lib.sh.

# Everything has this in its name: namespaces, cgroups, pins and files of one run, one run at a time.
NAME=culvert-qs
STATE=/run/culvert-quickstart
LOCK=/run/culvert-quickstart.lock
BPF_ROOT=/sys/fs/bpf
BPF_DIR=$BPF_ROOT/culvert-quickstart
CULVERT=$TARGET/release/culvert
BENCH=$TARGET/release/culvert-bench

# The oldest kernel with all that eBPF capture uses: cgroup links (5.7), sk_lookup (5.9), socket cookies by namespace (5.10).
KERNEL_MINIMUM=5.10

# require_host: refuses in one line what cannot work here, before anything is installed, built or made.
require_host() {
  [ "$(uname -s)" = Linux ] || die "needs Linux, this is $(uname -s)"
  [ "$(id -u)" = 0 ] || die "needs root (namespaces, cgroups, eBPF): run it with sudo, or in the machine of vagrant/"
  at_least "$(uname -r | sed 's/[^0-9.].*//')" "$KERNEL_MINIMUM" \
    || die "needs Linux $KERNEL_MINIMUM or newer, this is $(uname -r)"
  grep -qw bpf /proc/filesystems || die "this kernel has no bpffs (CONFIG_BPF_SYSCALL)"
  CGROUPS=$(cgroup2_mount)
  [ -n "$CGROUPS" ] || die "no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
  [ -w "$CGROUPS/cgroup.procs" ] || die "the cgroup2 hierarchy at $CGROUPS is read-only (a container?); use a machine of its own"
  unshare --net true 2>/dev/null || die "network namespaces cannot be made here (a container without CAP_SYS_ADMIN?)"
}

require_tools() {
  local tool
  for tool in ip curl perl ss flock; do
    have "$tool" || die "'$tool' is missing; scripts/install gets it"
  done
  for tool in "$CULVERT" "$BENCH"; do
    [ -x "$tool" ] || die "$tool is missing; leave --keep-build out to have it built"
  done
}

# cgroup2_mount: on hybrid hosts it is not at /sys/fs/cgroup.
cgroup2_mount() { awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts; }

# lock_out_others: the kernel drops the lock with the process, so no stale lock can remain. The file is removed at the
# end; a lock on a file that somebody removed meanwhile counts for nothing and is taken anew.
lock_out_others() {
  until [ /proc/self/fd/9 -ef "$LOCK" ]; do
    exec 9>"$LOCK"
    # What a killed run was just doing holds it for a moment longer.
    flock --timeout 3 9 || die "another quickstart is running on this machine"
  done
}

unlock() { rm -f "$LOCK"; }

# wait_until SECONDS WHAT COMMAND...: polls. Says what it waited for when the time is over.
wait_until() {
  local limit=$1 what=$2 deadline
  shift 2
  deadline=$((SECONDS + limit))
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || { warn "waited $limit s for $what"; return 1; }
    sleep 0.1
  done
}

# show_log FILE: its end, which is where the reason is.
show_log() {
  warn "the end of ${1##*/}:"
  tail -n 25 "$1" | sed 's/^/    | /' >&2
}
