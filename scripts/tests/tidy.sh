# shellcheck shell=bash
# scripts/tidy finds every breach, and none where there is none.

tidy() { "$ROOT/scripts/tidy" "$SCRATCH/tree"; }

# clean_tree: a small repository without a breach.
clean_tree() {
  mkdir -p "$SCRATCH/tree/dataplane/src" "$SCRATCH/tree/dataplane/ring/src"
  cd "$SCRATCH/tree" || return
  git init -q .
  echo '# lock' >Cargo.lock
  cat >dataplane/ring/src/lib.rs <<'END'
//! Here unsafe is allowed; todo is a word, too.
fn f(p: *const u8) -> u8 {
    // SAFETY: the caller's pointer
    // is valid.
    unsafe { *p }
}
END
  printf '#![forbid(unsafe_code)]\n// an unsafe { thing } in a comment\nconst S: &str = "unsafe { }";\n' >dataplane/src/lib.rs
}

test_tidy_accepts_a_clean_tree() {
  clean_tree
  tidy
}

# breach FILE TEXT REPORTED: a file with TEXT added to a clean tree is reported.
breach() {
  clean_tree
  mkdir -p "$(dirname "$1")"
  printf '%b' "$2" >"$1"
  fails tidy
  says "$3"
  says '1 breaches'
}

test_tidy_finds_an_unknown_name_at_the_top() { breach notes/a.md 'x\n' 'notes: not one of the fixed names'; }
test_tidy_finds_unsafe_in_a_safe_crate() {
  breach dataplane/src/a.rs '// SAFETY: none\nfn f() { unsafe { g() } }\n' 'dataplane/src/a.rs:2: unsafe outside'
}
test_tidy_finds_unsafe_without_a_reason() {
  breach dataplane/ring/src/a.rs 'fn f() {\n    unsafe { g() }\n}\n' 'ring/src/a.rs:2: unsafe without a SAFETY'
}
test_tidy_finds_holes() {
  breach dataplane/src/a.rs 'fn f() {\n    todo!()\n}\n' 'dataplane/src/a.rs:2: a hole'
  breach dataplane/src/a.rs '// FIXM''E later\n' 'dataplane/src/a.rs:1: a hole'
}
test_tidy_finds_clocks_on_the_way_of_requests() {
  breach dataplane/src/http/a.rs 'fn f() {\n    let now = Instant::now();\n}\n' 'http/a.rs:2: reads the clock'
}
test_tidy_finds_ignored_tests() { breach dataplane/src/a.rs '#[ign''ore]\nfn f() {}\n' 'a.rs:1: an ignored test'; }
test_tidy_finds_white_space_at_the_end() { breach dataplane/src/a.rs 'fn f() {} \n' 'a.rs:1: white space'; }
test_tidy_finds_paths_of_a_machine() { breach scripts/a 'cd /ho''me/me\n' 'scripts/a:1: a path of one machine'; }
test_tidy_finds_long_files() {
  breach dataplane/src/a.rs "$(printf '//\\n%.0s' {1..801})" 'dataplane/src/a.rs:801: longer than 800 lines'
}
test_tidy_leaves_out_what_git_ignores() {
  clean_tree
  echo target >.gitignore
  mkdir target && echo 'x ' >target/a.rs
  tidy
}
