# shellcheck shell=bash disable=SC2034 # for what is sourced
# How scripts/vmtest counts what virtual machines say, and what it takes along.

# said LINE...: what a machine has said.
said() { printf '%s\n' 'vm: Linux 6.1.0, up after 5.01 s' "$@"; }

test_results_of_a_machine_are_counted() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  [ "$(said 'vm: start a' 'test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured' 'vm: end a 0 at 9 s' \
    'vm: start b' 'test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured' 'vm: end b 101 at 19 s' \
    'vm: start doctor' 'all is well' 'vm: end doctor 0 at 20 s' \
    'vm: skipped some::test: the kernel has no such thing' 'vm: done' | count)" = '15 2 2' ]
}

test_a_machine_that_dies_has_failed() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  [ "$(said 'vm: start a' 'test x ... ok' | count)" = '0 1 0' ]
  [ "$(count </dev/null)" = '0 1 0' ]
}

test_a_program_that_dies_has_failed() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  [ "$(said 'vm: start a' 'test x ... ok' 'vm: end a 139 at 3 s' 'vm: start b' \
    'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured' 'vm: end b 0 at 4 s' 'vm: done' | count)" = '1 1 0' ]
}

test_a_skipped_program_is_not_a_pass() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  [ "$(said 'vm: start doctor' 'vm: end doctor 0 at 3 s' 'vm: skipped doctor: for a reason' 'vm: done' | count)" = '0 0 1' ]
}

test_reasons_are_said_once() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  [ "$(said 'vm: skipped a::b: too old: by far' 'vm: skipped c: nothing' 'vm: skipped d: too old: by far' 'vm: done' | reasons)" \
    = $'2 tests: too old: by far\nc: nothing' ]
}

test_programs_bring_their_libraries() {
  # shellcheck source=scripts/vmtest
  . "$ROOT/scripts/vmtest"
  mkdir -p "$SCRATCH/usr/sbin"
  add_command "$SCRATCH" ip
  [ -x "$SCRATCH/usr/sbin/ip" ]
  [ -n "$(find "$SCRATCH" -name 'libc.so.6')" ]
  [ -n "$(find "$SCRATCH" -name 'ld-linux*')" ]
}

test_an_unknown_kernel_is_refused() {
  fails "$ROOT/scripts/vmtest" --kernel 4.19
  says "not '4.19'"
}
