# shellcheck shell=bash disable=SC2016,SC2034 # for inner shells; used by the sourced file
# How scripts/test counts, and that what lies here is well formed.

test_results_of_all_programs_are_added() {
  # shellcheck source=scripts/test
  . "$ROOT/scripts/test"
  local log=$SCRATCH/log
  cat >"$log" <<'END'
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
test a ... FAILED
test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
4 passed, 1 failed, 2 skipped
END
  [ "$(count_results <"$log")" = '19 3 3' ]
}

test_a_stage_that_hangs_is_ended_and_counted() {
  # shellcheck source=scripts/test
  . "$ROOT/scripts/test"
  LOGS=$SCRATCH STAGE_SECONDS_MAX=1
  stage hanging bash -c 'echo $$ >"$0"; sleep 60; echo never' "$SCRATCH/pid"
  stage fine true
  stage broken false
  [ "$PASSED $FAILED ${BROKEN[*]}" = '1 2 hanging broken' ]
  # Killed, and taken away by init within a moment.
  for _ in {1..50}; do [ -e "/proc/$(cat "$SCRATCH/pid")" ] && sleep 0.1; done
  [ ! -e "/proc/$(cat "$SCRATCH/pid")" ]
  ! grep never "$SCRATCH/hanging.log"
}

test_a_stage_that_falls_silent_is_ended_and_says_what_it_waited_for() {
  # shellcheck source=scripts/test
  . "$ROOT/scripts/test"
  LOGS=$SCRATCH SILENT_SECONDS_MAX=1
  stage hanging bash -c '
    for name in quick stuck; do echo "test a::$name has been running for over 60 seconds"; done
    echo "test a::quick ... ok"; sleep 60'
  [ "$PASSED $FAILED" = '0 1' ]
  grep 'said nothing for 1 s and was ended; not finished: a::stuck $' "$SCRATCH/hanging.log"
}

test_scripts_pass_shellcheck() {
  have shellcheck || skip 'needs shellcheck'
  cd "$ROOT" || return
  shellcheck -x .ci/run scripts/{diff-envoy,fuzz,install,peers,quickstart,test,tidy,vmtest,lib.sh} dataplane/proto/fuzz/run scripts/quickstart.d/*.sh scripts/vmtest.d/{init,kernel.sh} scripts/tests/*
}

test_manifests_are_well_formed() {
  have python3 || skip 'needs python3'
  python3 -m json.tool "$ROOT/scripts/seccomp-io_uring.json" >/dev/null
}
