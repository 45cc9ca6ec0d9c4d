# shellcheck shell=bash
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

test_scripts_pass_shellcheck() {
  have shellcheck || skip 'needs shellcheck'
  cd "$ROOT" || return
  shellcheck -x .ci/run scripts/{install,quickstart,test,tidy,lib.sh} scripts/quickstart.d/*.sh scripts/tests/*
}

test_manifests_are_well_formed() {
  have python3 || skip 'needs python3'
  python3 -m json.tool "$ROOT/scripts/seccomp-io_uring.json" >/dev/null
}
