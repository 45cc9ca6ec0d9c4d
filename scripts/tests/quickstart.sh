# shellcheck shell=bash disable=SC2034,SC2317 # names and functions that the sourced files use
# The parts of the quickstart that do not need culvert: statistics, refusals, pods and their removal.

# The names of this test, not of a quickstart that may be running.
quickstart_parts() {
  local part
  for part in host pods config checks; do
    # shellcheck source=/dev/null
    . "$ROOT/scripts/quickstart.d/$part.sh"
  done
  NAME=culvert-t$$ NODE=culvert-t$$-node STATE=$SCRATCH/state BPF_DIR=$SCRATCH/pins CGROUPS=$(cgroup2_mount)
}

test_bounds_are_those_of_the_binomial_distribution() {
  quickstart_parts
  # From exact arithmetic: the tails outside hold at most 1e-7 each, one step further in they hold more.
  [ "$(binomial_bounds 4000 1 100 1e-7)" = '12 77' ]
  [ "$(binomial_bounds 400 1 100 1e-7)" = '0 18' ]
  [ "$(binomial_bounds 2000 50 100 1e-7)" = '884 1116' ]
}

test_tally_counts_versions_and_failures() {
  quickstart_parts
  count_versions < <(printf '200 reviews-v1\n200 reviews-v2\n503 -\n200 reviews-v1\n')
  [ "$ANSWERED $V1 $V2" = '3 2 1' ]
}

test_quickstart_refuses_what_it_does_not_know() {
  fails "$ROOT/scripts/quickstart" --nodes 2
  says 'reserved'
  fails "$ROOT/scripts/quickstart" --twice
  says "unknown argument '--twice'"
}

test_quickstart_refuses_without_root() {
  quickstart_parts
  id() { echo 1000; }
  fails require_host
  says 'needs root'
}

test_quickstart_refuses_an_old_kernel() {
  quickstart_parts
  id() { echo 0; }
  uname() { case $1 in -s) echo Linux ;; -r) echo 4.19.0-27-amd64 ;; esac; }
  fails require_host
  says 'needs Linux 5.10 or newer, this is 4.19.0-27-amd64'
}

# Pods reach each other, see the service's name, and an unserved service is unreachable at once.
test_pods_are_made_and_removed() {
  quickstart_parts
  [ "$(id -u)" = 0 ] || skip 'needs root for namespaces'
  [ -w "$CGROUPS/cgroup.procs" ] || skip 'needs a writable cgroup2 hierarchy'
  trap remove_everything EXIT
  make_pods
  in_pod client ip -br address | grep 10.201.0.10/24
  in_pod client grep "$NAME/pods/client" /proc/self/cgroup
  in_pod client getent hosts reviews | grep 10.202.0.10
  become_in_pod reviews-v1 nc -lk 10.201.0.11 9080 &
  disown
  wait_until 10 'nc' pod_listens reviews-v1 9080
  in_pod client nc -z -w 5 10.201.0.11 9080
  fails in_pod client curl -sS --max-time 5 "$SERVICE_URL"
  [[ $OUTPUT != *'timed out'* ]]
  [ "$(ip -br link | grep -c "$NAME" || true)" = 0 ]

  remove_everything
  nothing_is_left
  [ ! -e "/run/netns/$NAME-client" ] && [ ! -e "$CGROUPS/$NAME" ] && [ ! -e "$STATE" ]
}

test_configuration_is_yaml_with_the_weights_asked_for() {
  quickstart_parts
  mkdir -p "$STATE"
  write_configuration >/dev/null
  set_weights 50 50
  grep -q 'name: reviews-v2, weight: 50}' "$STATE/rds.yaml"
  [ "$(ls "$STATE")" = "$(printf '%s\n' bootstrap.yaml cds.yaml eds-reviews-v1.yaml eds-reviews-v2.yaml lds.yaml pods.yaml rds.yaml)" ]
}
