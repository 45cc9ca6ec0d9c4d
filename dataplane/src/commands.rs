//! What the command line asks for: serving, validating, talking to a serving culvert.

mod check;
mod doctor;
mod top;

use std::time::Duration;

use anyhow::{anyhow, bail};
use culvert::{
    capture::{
        CaptureMode, PodReport, PodSpec, Policy, Request, Response, Target,
        repair::call_or_repair,
        splice::{SpliceMode, SpliceSettings},
    },
    cli::{self, Cli, Command, PodAdd, PodCommand},
    control::{self, ServeOptions, admin::ServerInfo},
    logging,
    observe::access_log,
};
use culvert_ring::IoChoice;
use culvert_xds::{LoadOptions, Loaded, Note};

/// Serves until told to stop.
pub(crate) fn serve(cli: &Cli) -> anyhow::Result<()> {
    init_logging(cli)?;
    let loaded = load(cli)?;
    for note in &loaded.notes {
        log::warn!(target: "config", "{note}");
    }
    for warning in cli.warnings() {
        log::warn!(target: "main", "{warning}");
    }
    let options = serve_options(cli);
    let workers = u32::try_from(options.concurrency).unwrap_or(u32::MAX);
    let info = ServerInfo {
        version: cli::version(),
        uptime: Duration::ZERO,
        command_line_options: cli.command_line_options(workers),
        node: serde_json::json!({ "id": loaded.bootstrap.node_id, "cluster": loaded.bootstrap.node_cluster }),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, control::serve(loaded, options, info))?;
    Ok(())
}

/// Says whether the configuration can be served.
pub(crate) fn validate(cli: &Cli) -> anyhow::Result<()> {
    let loaded = load(cli)?;
    print_notes(&loaded.notes);
    let path =
        cli.config.config_path.as_ref().map_or_else(|| "--config-yaml".into(), |p| p.display().to_string());
    println!("configuration '{path}' OK");
    Ok(())
}

/// Runs a subcommand.
pub(crate) fn run(command: &Command, cli: &Cli) -> anyhow::Result<()> {
    match command {
        Command::Check(check) => check::run(check, cli),
        Command::Doctor(doctor) => doctor::run(doctor),
        Command::Pod(command) => pod(command, cli),
        Command::Top(arguments) => top::run(arguments, cli),
    }
}

fn print_notes(notes: &[Note]) {
    for note in notes {
        println!("{note}");
    }
}

fn init_logging(cli: &Cli) -> anyhow::Result<()> {
    logging::init(&logging::Options {
        level: Some(cli.log.log_level),
        format: cli.log.log_format.clone(),
        escaped: cli.log.log_format_escaped,
        path: cli.log.log_path.clone(),
    })?;
    if let Some(list) = &cli.log.component_log_level {
        logging::set_components(list)?;
    }
    Ok(())
}

fn load(cli: &Cli) -> anyhow::Result<Loaded> {
    let config = &cli.config;
    culvert_xds::load_bootstrap(&LoadOptions {
        config_path: config.config_path.clone(),
        config_yaml: config.config_yaml.clone(),
        node_id: config.service_node.clone(),
        node_cluster: config.service_cluster.clone(),
        allow_unknown_static_fields: cli.allows_unknown_static_fields(),
        reject_unknown_dynamic_fields: config.reject_unknown_dynamic_fields,
    })
    .map_err(|errors| anyhow!("the configuration cannot be served:\n{errors}"))
}

fn serve_options(cli: &Cli) -> ServeOptions {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // As in Envoy 0 means one, and no flag means one per CPU.
    let concurrency = cli.workers.concurrency.map_or(cpus, |n| (n as usize).max(1));
    ServeOptions {
        concurrency,
        io: match cli.workers.io {
            cli::Io::Auto => IoChoice::Auto,
            cli::Io::Epoll => IoChoice::Epoll,
            cli::Io::Uring => IoChoice::Uring,
        },
        capture: capture_mode(cli),
        pods: cli.capture.pods.clone(),
        control_socket: cli.capture.control_socket.clone(),
        bpf_dir: cli.capture.bpf_dir.clone(),
        cgroup: cli.capture.cgroup.clone(),
        direct: cli.capture.direct == cli::Switch::On,
        splice: SpliceSettings {
            mode: match cli.capture.splice {
                cli::Splice::Auto => SpliceMode::Auto,
                cli::Splice::On => SpliceMode::On,
                cli::Splice::Off => SpliceMode::Off,
            },
            limit: cli.capture.splice_limit,
        },
        admin_address_path: cli.config.admin_address_path.clone(),
        drain: culvert::worker::DrainPolicy {
            time: cli.drain.drain_time(),
            gradual: cli.drain.drain_strategy == cli::DrainStrategy::Gradual,
        },
        access_log: access_log::Options {
            flush_interval: cli.log.flush_interval(),
            flush_size: cli.log.flush_size(),
        },
        init_only: cli.config.mode == cli::Mode::InitOnly,
    }
}

fn capture_mode(cli: &Cli) -> CaptureMode {
    match cli.capture.capture {
        cli::Capture::Ebpf => CaptureMode::Ebpf,
        cli::Capture::Iptables => CaptureMode::Iptables,
        cli::Capture::None => CaptureMode::None,
    }
}

fn pod(command: &PodCommand, cli: &Cli) -> anyhow::Result<()> {
    let request = match command {
        PodCommand::Add(add) => Request::Add { pod: spec(add) },
        PodCommand::List { .. } => Request::List {},
        PodCommand::Remove { name, netns } => Request::Remove { name: name.clone(), netns: netns.clone() },
        PodCommand::Repair { name } => Request::Repair { name: name.clone() },
    };
    let socket = &cli.capture.control_socket;
    match call_or_repair(socket, &request)? {
        Response::Error { message } => bail!(message),
        Response::Ok { messages, pods } => {
            for message in messages {
                println!("{message}");
            }
            match command {
                PodCommand::List { json: true } => println!("{}", serde_json::to_string_pretty(&pods)?),
                _ => print_pods(&pods),
            }
            Ok(())
        }
    }
}

fn spec(add: &PodAdd) -> PodSpec {
    let target = |name: &Option<String>| match name.as_deref() {
        None => Target::Default,
        Some("off") => Target::Off,
        Some(name) => Target::Listener(name.to_owned()),
    };
    let mut spec = PodSpec::new(add.name.clone().unwrap_or_default(), &add.netns);
    spec.cgroup = add.cgroup.clone();
    spec.policy = match add.policy {
        cli::Policy::Permissive => Policy::Permissive,
        cli::Policy::Strict => Policy::Strict,
    };
    spec.outbound = target(&add.outbound);
    spec.inbound = target(&add.inbound);
    spec.addresses = add.addresses.clone();
    spec.direct = add.direct.map(|direct| direct == cli::Switch::On);
    spec.splice = !add.no_splice;
    spec
}

fn print_pods(pods: &[PodReport]) {
    for pod in pods {
        let counters = &pod.counters;
        println!(
            "{}\t{}\t{:?}\toutbound {}\tinbound {}\tcaptured {}\tdirect {}\tbypassed {}\trefused {}\tno-destination {}\tspliced {}{}",
            pod.name,
            pod.mode,
            pod.policy,
            pod.outbound.as_deref().unwrap_or("-"),
            pod.inbound.as_deref().unwrap_or("-"),
            counters.captured,
            counters.direct,
            counters.bypassed,
            counters.refused,
            counters.no_original_dst,
            counters.spliced,
            pod.pending.as_ref().map(|why| format!("\tpending: {why}")).unwrap_or_default(),
        );
    }
}
