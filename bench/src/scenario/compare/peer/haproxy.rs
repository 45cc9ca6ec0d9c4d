//! HAProxy's configuration.

use super::super::workload::Scenario;
use super::Job;

/// Connections it is to hold: it refuses to start when twice as many descriptors are not to be had.
const CONNECTIONS_MAX: u32 = 9500;

pub(super) fn config(job: &Job<'_>) -> String {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = descriptors.map_or(CONNECTIONS_MAX, |limit| {
        u32::try_from(limit.saturating_sub(200) / 2).unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX)
    });
    let (bind, server) = match job.scenario {
        Scenario::Http2 | Scenario::Grpc => (" proto h2".to_owned(), " proto h2"),
        Scenario::Tls => (format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn http/1.1", job.pem.display()), ""),
        Scenario::Http1 | Scenario::Bodies | Scenario::Connections => (String::new(), ""),
    };
    format!(
        "global
  nbthread 1
  maxconn {room}
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  option http-keep-alive
  http-reuse aggressive
frontend bench
  bind {}{bind}
  default_backend backend
backend backend
  server backend {}{server}
",
        job.listen, job.backend
    )
}
