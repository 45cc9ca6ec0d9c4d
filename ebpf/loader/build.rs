//! Compiles the eBPF programs and leaves the objects in `OUT_DIR` for the crate to embed.
//!
//! The programs are a crate of this workspace built for another target, which Cargo cannot express as a dependency,
//! so a second cargo runs here. It gets a target directory of its own (the outer one is locked) and none of the
//! settings that were meant for the outer build.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "culvert-bpf-programs";
const OBJECTS: [&str; 2] = ["culvert-bpf", "culvert-bpf-splice"];

/// Variables with these prefixes configure how cargo reaches its registries, not what it builds.
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];

/// Settings of the outer build that would break or needlessly repeat the inner one.
const DROPPED: [&str; 8] = [
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "TARGET",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for part in ["programs/src", "programs/Cargo.toml", "common/src", "common/Cargo.toml"] {
        println!("cargo::rerun-if-changed=../{part}");
    }
    // Reported this way and not by a panic, the reason is one line of its own.
    if let Err(reason) = build() {
        println!("cargo::error={reason}");
    }
}

fn build() -> Result<(), String> {
    let ebpf = dir("CARGO_MANIFEST_DIR")?.join("..");
    let out = dir("OUT_DIR")?;
    require_linker()?;
    let sysroot = sysroot(&ebpf)?;
    require_sources(&sysroot)?;
    if env::var_os("CARGO_CFG_TARGET_ENDIAN").is_some_and(|endian| endian != "little") {
        return Err("eBPF capture is built for little-endian machines only".into());
    }

    let target_dir = out.join("bpf");
    let output =
        cargo(&ebpf, &sysroot, &target_dir).output().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        // The compiler's own words; cargo shows a build script's output only when it fails by its exit code.
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo::warning={line}");
        }
        return Err(format!("the eBPF programs do not compile: {}", last_error(&output.stderr)));
    }
    for object in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(object);
        fs::copy(&built, out.join(object)).map_err(|e| format!("{}: {e}", built.display()))?;
    }
    Ok(())
}

fn cargo(ebpf: &Path, sysroot: &Path, target_dir: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let for_outer_build = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if for_outer_build || DROPPED.contains(&&*text) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .current_dir(ebpf.join("programs"))
        .args(["build", "--quiet", "--package", PACKAGE, "--release", "--target", TARGET])
        // No precompiled `core` exists for the target; building it needs an unstable option of a stable compiler.
        .args(["-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        // The linker makes BTF, which carries the map definitions, out of full debug information.
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Clink-arg=--btf{}", remap(ebpf, sysroot)))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    cargo
}

fn require_linker() -> Result<(), String> {
    match Command::new("bpf-linker").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("bpf-linker does not run ({}): run scripts/install", output.status)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err("bpf-linker is missing: run scripts/install".into())
        }
        Err(e) => Err(format!("bpf-linker does not run ({e}): run scripts/install")),
    }
}

fn require_sources(sysroot: &Path) -> Result<(), String> {
    if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return Ok(());
    }
    Err("the Rust component rust-src is missing: run scripts/install".into())
}

fn sysroot(ebpf: &Path) -> Result<PathBuf, String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).current_dir(ebpf).args(["--print", "sysroot"]).output();
    let output = output.map_err(|e| format!("cannot start rustc: {e}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Flags that keep the builder's directories out of the debug information, and so out of the binary.
fn remap(ebpf: &Path, sysroot: &Path) -> String {
    let workspace = ebpf.join("..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let dirs = [(Some(workspace), "."), (home, "cargo"), (Some(sysroot.to_owned()), "rust")];
    let flags = dirs
        .into_iter()
        .filter_map(|(dir, name)| Some(format!("\x1f--remap-path-prefix={}={name}", dir?.display())));
    flags.collect()
}

fn dir(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"))
}

fn last_error(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let error = text.lines().find(|line| line.starts_with("error")).or_else(|| text.lines().last());
    error.unwrap_or("no output").to_owned()
}
