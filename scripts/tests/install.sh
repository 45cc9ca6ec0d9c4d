# shellcheck shell=bash disable=SC2317 # functions that the sourced file calls
# scripts/install leaves alone what is there, and knows when bpf-linker has to be built again.

test_install_does_nothing_the_second_time() {
  "$ROOT/scripts/install" --for test
  [ -z "$("$ROOT/scripts/install" --for test)" ]
}

test_install_refuses_an_unknown_level() {
  fails "$ROOT/scripts/install" --for fun
  says "not 'fun'"
}

test_bpf_linker_is_built_again_for_a_newer_llvm() {
  # shellcheck source=scripts/install
  . "$ROOT/scripts/install"
  use_rust
  bpf_linker_fits
  rustc_llvm_major() { echo 99; }
  ldd() { echo 'libLLVM.so.22.1-rust-1.95.0-stable => /lib/libLLVM.so.22.1 (0x0)'; }
  fails bpf_linker_fits
  ldd() { echo 'libLLVM-99.so => /lib/libLLVM-99.so (0x0)'; }
  bpf_linker_fits
}

test_versions_are_compared_by_number() {
  at_least 1.100.0 1.95
  at_least 1.95 1.95
  fails at_least 1.94.9 1.95
}
