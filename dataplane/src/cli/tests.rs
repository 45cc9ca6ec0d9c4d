use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("culvert").chain(line.split_whitespace()))
}

fn pod(line: &str) -> PodCommand {
    match parse(line).unwrap().command {
        Some(Command::Pod(command)) => command,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn defaults() {
    let cli = parse("").unwrap();
    assert_eq!(cli.command, None);
    assert_eq!(
        (cli.config.mode, cli.workers.io, cli.capture.capture),
        (Mode::Serve, Io::Auto, Capture::None)
    );
    assert_eq!((cli.capture.splice, cli.capture.splice_limit), (Splice::Auto, 262_144));
    assert_eq!(cli.capture.control_socket, PathBuf::from("/run/culvert/control.sock"));
    assert_eq!(cli.drain.drain_time(), Duration::from_secs(600));
    assert_eq!(cli.log.flush_interval(), Duration::from_secs(10));
    assert_eq!(cli.log.flush_size(), 65_536);
    assert!(cli.warnings().is_empty() && cli.early_output().is_none());
}

#[test]
fn an_envoy_command_line_works() {
    // As Istio's agent, Contour and a hot restart script start Envoy.
    let cli = parse(
        "-c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
         --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
         --allow-unknown-static-fields -l warning --component-log-level misc:error --concurrency 2 \
         --service-cluster web --service-node sidecar~10.0.0.1 --restart-epoch 0 --base-id 3 \
         --ignore-unknown-dynamic-fields --use-dynamic-base-id --skip-deprecated-logs --cpuset-threads \
         --stats-tag a:b --stats-tag c:d -- --whatever is here",
    )
    .unwrap();
    assert_eq!(cli.config.config_path, Some("etc/istio/proxy/envoy-rev.json".into()));
    assert_eq!(cli.drain.drain_strategy, DrainStrategy::Immediate);
    assert_eq!(cli.log.log_level, Level::Warning);
    assert_eq!(cli.workers.concurrency, Some(2));
    assert!(cli.allows_unknown_static_fields());
    let warnings = cli.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, flag) in warnings.iter().zip(["--base-id ", "--use-dynamic-base-id ", "--stats-tag "]) {
        assert!(warning.starts_with(flag), "{warning}");
    }
}

#[test]
fn every_flag_of_envoy_1_40_is_accepted() {
    for flag in [
        "--stats-tag a:b",
        "--enable-core-dump",
        "--socket-mode 600",
        "--socket-path @x",
        "--disable-extensions a,b",
        "--cpuset-threads",
        "--enable-mutex-tracing",
        "--disable-hot-restart",
        "--mode validate",
        "--mode init_only",
        "--parent-shutdown-time-s 1",
        "--drain-strategy gradual",
        "--drain-time-s 1",
        "--file-flush-min-size-kb 8",
        "--file-flush-interval-msec 8",
        "--service-zone z",
        "--service-node n",
        "--service-cluster c",
        "--hot-restart-version",
        "--restart-epoch 1",
        "--log-path /tmp/x",
        "--enable-fine-grain-logging",
        "--log-format-escaped",
        "--log-format %v",
        "--component-log-level http:debug",
        "-l off",
        "--log-level critical",
        "--local-address-ip-version v6",
        "--admin-address-path /tmp/a",
        "--log-stacktrace-single-entry",
        "--skip-deprecated-logs",
        "--ignore-unknown-dynamic-fields",
        "--reject-unknown-dynamic-fields",
        "--allow-unknown-static-fields",
        "--allow-unknown-fields",
        "--config-yaml a:b",
        "-c f",
        "--config-path f",
        "--concurrency 0",
        "--base-id-path /tmp/b",
        "--skip-hot-restart-parent-stats",
        "--skip-hot-restart-on-no-parent",
        "--use-dynamic-base-id",
        "--base-id 1",
        "--version",
    ] {
        parse(flag).unwrap_or_else(|error| panic!("{flag}: {error}"));
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    for (line, named) in [
        ("--concurrency many", "--concurrency"),
        ("--concurrency 5000", "--concurrency"),
        ("--log-level loud", "--log-level"),
        ("--mode sing", "--mode"),
        ("--io aio", "--io"),
        ("--drain-time-s -1", "-1"),
        ("--nonsense", "--nonsense"),
        ("frobnicate", "frobnicate"),
        ("pod add --name x", "--netns"),
        ("pod add --netns /n --addresses 10.0.0", "--addresses"),
        ("pod remove", "<NAME>"),
        ("check", "FILE"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(named), "{line}: {error}");
    }
}

#[test]
fn pod_commands() {
    let add = pod(
        "pod add --netns /run/netns/web --cgroup /sys/fs/cgroup/web --name web --outbound out --inbound in \
         --policy permissive --addresses 10.0.0.1,fd00::1 --direct on --no-splice",
    );
    let expected = PodAdd {
        netns: "/run/netns/web".into(),
        cgroup: Some("/sys/fs/cgroup/web".into()),
        name: Some("web".into()),
        outbound: Some("out".into()),
        inbound: Some("in".into()),
        policy: Policy::Permissive,
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        direct: Some(Switch::On),
        no_splice: true,
    };
    assert_eq!(add, PodCommand::Add(expected));
    assert_eq!(pod("pod remove web"), PodCommand::Remove { name: Some("web".into()), netns: None });
    assert_eq!(pod("pod remove --netns /n"), PodCommand::Remove { name: None, netns: Some("/n".into()) });
    assert!(parse("pod remove web --netns /n").is_err());
    assert_eq!(pod("pod list --json"), PodCommand::List { json: true });
    assert_eq!(pod("pod repair"), PodCommand::Repair { name: None });
    assert_eq!(pod("pod repair web"), PodCommand::Repair { name: Some("web".into()) });
}

#[test]
fn the_control_socket_may_stand_before_or_after_the_command() {
    for line in
        ["--control-socket /x pod list", "pod list --control-socket /x", "pod --control-socket /x list"]
    {
        assert_eq!(parse(line).unwrap().capture.control_socket, PathBuf::from("/x"), "{line}");
    }
}

#[test]
fn the_version_has_five_parts() {
    let output = parse("--version").unwrap().early_output().unwrap();
    let line = output.trim().strip_prefix("culvert  version: ").unwrap();
    let parts: Vec<&str> = line.split('/').collect();
    assert_eq!(parts.len(), 5);
    assert_eq!(parts[0].len(), 40);
    assert_eq!(parts[1], env!("CARGO_PKG_VERSION"));
    assert!(parts.iter().all(|part| !part.is_empty()));
}

#[test]
fn options_are_reported_as_server_info_wants_them() {
    let cli =
        parse("-c x.yaml --file-flush-interval-msec 250 --mode validate --disable-extensions a,b").unwrap();
    let options = cli.command_line_options(4);
    assert_eq!(options["concurrency"], 4);
    assert_eq!(options["config_path"], "x.yaml");
    assert_eq!(options["mode"], "Validate");
    assert_eq!(options["drain_time"], "600s");
    assert_eq!(options["file_flush_interval"], "0.250s");
    assert_eq!(options["disabled_extensions"], serde_json::json!(["a", "b"]));
    assert_eq!(options["culvert"]["io"], "auto");
}

#[test]
fn the_manual_mentions_every_flag_and_component() {
    let manual = Cli::command().render_long_help().to_string();
    for flag in ["--config-path", "--pods", "--base-id", "--stats-tag", "--enable-core-dump", "EXAMPLES"] {
        assert!(manual.contains(flag), "{flag}");
    }
    for (component, _) in crate::logging::levels() {
        assert!(manual.contains(component), "{component}");
    }
}
