//! Compiles Envoy's .proto files, which `envoy-types` ships, and Culvert's own into one descriptor set, with an index
//! of what is where in it.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

/// Where imports are looked up, below the `proto` directory of `envoy-types`.
const INCLUDES: [&str; 8] = [
    "data-plane-api",
    "googleapis",
    "xds",
    "protoc-gen-validate",
    "opentelemetry-proto",
    "cel-spec/proto",
    "client_model",
    "ratelimit/api",
];

/// What can occur in a configuration, in a discovery response or in `/config_dump`. Files that only define the
/// services of other servers (rate limit, authorisation, access log, ...) come in where one of these imports them.
const ROOTS: [&str; 6] = [
    "envoy/config",
    "envoy/extensions",
    "envoy/type",
    "envoy/service/discovery",
    "envoy/service/runtime",
    "envoy/admin/v3/config_dump.proto",
];

/// Relative names that protoc resolves and protox does not: it takes a package to be in sight although it was only
/// imported by an import (`envoy.extensions.config`, say), and stops looking there. As written, and in full.
const SHADOWED: [(&str, &str); 7] = [
    (" config.", " .envoy.config."),
    (" common.async_files.", " .envoy.extensions.common.async_files."),
    (" common.aws.", " .envoy.extensions.common.aws."),
    (" common.dynamic_forward_proxy.", " .envoy.extensions.common.dynamic_forward_proxy."),
    (" common.matching.", " .envoy.extensions.common.matching."),
    (" common.ratelimit.", " .envoy.extensions.common.ratelimit."),
    (" common.tap.", " .envoy.extensions.common.tap."),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    if let Err(reason) = run() {
        // A panic would bury the one line that matters.
        println!("cargo::error=culvert-xds: {reason}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let own = manifest.join("proto");
    let envoy = envoy_protos(&manifest)?;

    let mut names = Vec::new();
    for root in ROOTS {
        collect(&envoy.join("data-plane-api"), &envoy.join("data-plane-api").join(root), &mut names)?;
    }
    collect(&own, &own, &mut names)?;
    names.sort();

    let includes = INCLUDES.iter().map(|include| envoy.join(include)).chain([own]).collect();
    let mut resolver = ChainFileResolver::new();
    resolver.add(Sources { includes });
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(false);
    for name in names {
        compiler.open_file(&name).map_err(|e| format!("{}: {e}", name.display()))?;
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let set = compiler.encode_file_descriptor_set();
    let index = index(&compiler, &set)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
    };
    write("descriptors.bin", &set)?;
    write("descriptors.rs", index.as_bytes())
}

/// Where each file is in the encoded set, what it imports, and which file defines which message: with it a part of the
/// set can be decoded.
fn index(compiler: &protox::Compiler, set: &[u8]) -> Result<String, String> {
    let files = compiler.file_descriptor_set().file;
    let numbers: HashMap<_, _> =
        files.iter().enumerate().map(|(number, file)| (file.name(), number)).collect();
    let mut messages = Vec::new();
    let mut source = format!("pub(super) static FILES: [File; {}] = [\n", files.len());
    let mut start = 0;
    for (number, file) in files.iter().enumerate() {
        let end = record_end(set, start).ok_or("the descriptor set is cut short")?;
        let imports: Vec<_> =
            file.dependency.iter().filter_map(|import| numbers.get(import.as_str())).collect();
        source += &format!("File {{ start: {start}, end: {end}, imports: &{imports:?} }},\n");
        start = end;
        messages
            .extend(file.message_type.iter().map(|m| (format!("{}.{}", file.package(), m.name()), number)));
    }
    messages.sort();
    source += &format!("];\npub(super) static MESSAGES: [(&str, u16); {}] = {messages:?};\n", messages.len());
    if start == set.len() {
        Ok(source)
    } else {
        Err("the descriptor set holds more than its files".to_owned())
    }
}

/// The end of the length-delimited field that begins at `start`.
fn record_end(set: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    let mut length = 0;
    for shift in (0..).step_by(7) {
        let byte = *set.get(at)?;
        length |= usize::from(byte & 0x7F) << shift;
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    Some(at + length).filter(|end| *end <= set.len())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}

/// The `proto` directory of the `envoy-types` this workspace is locked to. Cargo tells a build script nothing about
/// the sources of a dependency, so it is asked; first without the network, which other targets' packages may need.
fn envoy_protos(manifest: &Path) -> Result<PathBuf, String> {
    let mut reason = String::new();
    for offline in [true, false] {
        match metadata(manifest, offline).and_then(|metadata| manifest_path(&metadata)) {
            Ok(path) => {
                let protos = path.with_file_name("proto");
                return match protos.is_dir() {
                    true => Ok(protos),
                    false => Err(format!("{} does not exist", protos.display())),
                };
            }
            Err(e) => reason = e,
        }
    }
    Err(format!("cannot find the sources of envoy-types: {reason}"))
}

fn metadata(manifest: &Path, offline: bool) -> Result<serde_json::Value, String> {
    let mut command = Command::new(variable("CARGO")?);
    command.args(["metadata", "--format-version=1", "--filter-platform"]).arg(variable("HOST")?);
    command.arg("--manifest-path").arg(manifest.join("Cargo.toml"));
    if offline {
        command.arg("--offline");
    }
    let output = command.output().map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))
}

fn manifest_path(metadata: &serde_json::Value) -> Result<PathBuf, String> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata: no packages")?;
    let package =
        packages.iter().find(|package| package["name"] == "envoy-types").ok_or("no such package")?;
    package["manifest_path"].as_str().map(PathBuf::from).ok_or_else(|| "no manifest path".to_owned())
}

/// Adds the name, relative to `include`, of every .proto file at or below `path`.
fn collect(include: &Path, path: &Path, names: &mut Vec<PathBuf>) -> Result<(), String> {
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for entry in entries {
            collect(include, &entry.map_err(|e| e.to_string())?.path(), names)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "proto") {
        names.push(path.strip_prefix(include).map_err(|e| e.to_string())?.to_owned());
    }
    Ok(())
}

/// Reads imported files, with the names of [`SHADOWED`] in full.
struct Sources {
    includes: Vec<PathBuf>,
}

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let source = self.includes.iter().find_map(|include| fs::read_to_string(include.join(name)).ok());
        let Some(mut source) = source else { return Err(protox::Error::file_not_found(name)) };
        for (relative, full) in SHADOWED {
            source = source.replace(relative, full);
        }
        File::from_source(name, &source)
    }
}
