//! `culvert-bench load`: a load generator for HTTP/1.1, HTTP/2 and gRPC, with or without TLS.
//!
//! Closed loop measures capacity; open loop (`--rate`) measures latency as clients who do not wait for each other see
//! it, corrected for coordinated omission because latency counts from when a request was due.

mod engine;
mod http2;
mod meter;
mod plan;
mod response;
mod schedule;
mod slot;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::report::table::{Align, Table};
use crate::wire::{append_pattern, grpc_message};

pub use plan::{Http2Plan, Pacing, Plan, PlanError, Protocol, Reuse, Target, Tls, render_request};
pub use response::{Finished, ResponseError, ResponseReader};
pub use tally::{CURVE, Failure, Outcome, Quantiles};
pub use tls::client_config;

/// Sends HTTP requests and reports rate, latencies and errors.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to send requests: http://host[:port][/path], or https: TLS 1.3 with any certificate
    url: String,
    /// Speak HTTP/2: with prior knowledge, or by ALPN with https
    #[arg(long, conflicts_with = "new_connections")]
    http2: bool,
    /// Send unary gRPC calls, over HTTP/2; --body is the length of the message
    #[arg(long, conflicts_with = "new_connections")]
    grpc: bool,
    /// Requests under way at the same time on one connection; HTTP/2 only
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    streams: u32,
    /// Connections used at the same time
    #[arg(short = 'c', long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Requests per second (open loop); without it each connection sends as fast as it is answered (closed loop)
    #[arg(short = 'R', long, value_parser = positive)]
    rate: Option<f64>,
    /// Length of the measured window, in seconds [default: 10, or at most 600 with --requests]
    #[arg(short = 'd', long, value_parser = positive)]
    duration: Option<f64>,
    /// Stop after this many requests
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Load before the measured window, in seconds
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    warm_up: f64,
    /// A new connection for each request
    #[arg(long)]
    new_connections: bool,
    /// Send a body of this many bytes with each request
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    body: usize,
    /// Request method [default: GET, or POST with --body]
    #[arg(short = 'X', long)]
    method: Option<String>,
    /// Header to send, 'Name: value'; may be repeated
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Longest wait for a connection and for a response, in seconds
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    timeout: f64,
    /// Also report the CPU time of this cgroup (version 2 directory) over the window; may be repeated
    #[arg(long, value_name = "DIR")]
    cpu_of: Vec<PathBuf>,
    /// Also report the CPU time of this process and its descendants over the window; may be repeated
    #[arg(long, value_name = "PID")]
    cpu_of_process: Vec<u32>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const DURATION: f64 = 10.0;
const DURATION_MAX: f64 = 600.0;

/// Runs `culvert-bench load` and prints its result.
///
/// # Errors
/// When the arguments make no request or the run cannot start; failed requests are part of the result.
pub fn command(args: &Args) -> anyhow::Result<()> {
    let outcome = run(&args.plan()?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print!("{}", render(&outcome));
    }
    Ok(())
}

/// Runs a plan to its end and returns what came of it. Takes at most warm-up, duration and timeout together.
///
/// # Errors
/// Only when epoll, a timer, or what is to be measured is not to be had; failing requests are part of the outcome.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    match &plan.protocol {
        Protocol::Http1 => engine::run(plan),
        Protocol::Http2(http2) => http2::run(plan, http2),
    }
}

impl Args {
    /// The plan these arguments describe; resolves the URL's host.
    ///
    /// # Errors
    /// Names the URL or header that cannot be used.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        let target = Target::resolve(&self.url)?;
        let is_post = self.body > 0 || self.grpc;
        let method = self.method.as_deref().unwrap_or(if is_post { "POST" } else { "GET" });
        let reuse = if self.new_connections { Reuse::PerRequest } else { Reuse::KeepAlive };
        let duration = match (self.duration, self.requests) {
            (Some(duration), _) => duration,
            (None, Some(_)) => DURATION_MAX,
            (None, None) => DURATION,
        };
        Ok(Plan {
            target: target.address,
            protocol: self.protocol(&target, method)?,
            tls: self.tls(&target)?,
            request: render_request(&target, method, &self.headers, self.body, reuse)?,
            request_is_head: method == "HEAD",
            connections: self.connections as usize,
            pacing: self.rate.map_or(Pacing::Closed, |rate| Pacing::Open { rate }),
            reuse,
            duration: Duration::from_secs_f64(duration),
            requests_max: self.requests,
            warm_up: Duration::from_secs_f64(self.warm_up),
            timeout: Duration::from_secs_f64(self.timeout),
            cpu_of: self.cpu_of.clone(),
            cpu_of_processes: self.cpu_of_process.clone(),
        })
    }

    fn protocol(&self, target: &Target, method: &str) -> Result<Protocol, PlanError> {
        if !self.http2 && !self.grpc {
            return Ok(Protocol::Http1);
        }
        if method == "HEAD" {
            return Err(PlanError::Http2("HEAD"));
        }
        let mut headers = Vec::new();
        for header in &self.headers {
            let (name, value) = header.split_once(':').ok_or_else(|| PlanError::Header(header.clone()))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut body = Vec::new();
        append_pattern(&mut body, 0, self.body);
        if self.grpc {
            headers.extend([("content-type", "application/grpc"), ("te", "trailers")].map(own));
            body = grpc_message(&body);
        }
        let scheme = if target.is_https { "https" } else { "http" };
        Ok(Protocol::Http2(Http2Plan {
            method: method.to_owned(),
            uri: format!("{scheme}://{}{}", target.authority, target.path),
            headers,
            body,
            streams: self.streams as usize,
            grpc: self.grpc,
        }))
    }

    fn tls(&self, target: &Target) -> Result<Option<Tls>, PlanError> {
        if !target.is_https {
            return Ok(None);
        }
        let wrong = || PlanError::ServerName(self.url.clone());
        let alpn = if self.http2 || self.grpc { "h2" } else { "http/1.1" };
        let config = client_config(&[alpn]).map_err(|_| wrong())?;
        let name = ServerName::try_from(target.host.clone()).map_err(|_| wrong())?;
        Ok(Some(Tls { config, name }))
    }
}

/// The result as aligned plain text.
fn render(outcome: &Outcome) -> String {
    let mut table = Table::new(&[
        ("latency", Align::Left),
        ("count", Align::Right),
        ("mean us", Align::Right),
        ("p50 us", Align::Right),
        ("p90 us", Align::Right),
        ("p99 us", Align::Right),
        ("p99.9 us", Align::Right),
        ("max us", Align::Right),
    ]);
    let rows = [
        ("due to done", &outcome.latency_us),
        ("sent to done", &outcome.service_us),
        ("connect", &outcome.connect_us),
    ];
    for (name, quantiles) in rows {
        if quantiles.count == 0 {
            continue;
        }
        let figures =
            [quantiles.mean, quantiles.p50, quantiles.p90, quantiles.p99, quantiles.p99_9, quantiles.max];
        let mut row = vec![name.to_owned(), quantiles.count.to_string()];
        row.extend(figures.map(|figure| format!("{figure:.1}")));
        table.row(row);
    }
    let mut text = format!(
        "{} requests in {:.2} s: {:.0} per second, {:.1} us of generator CPU each\n\n{}\n",
        outcome.requests,
        outcome.seconds,
        outcome.requests_per_second,
        outcome.generator_cpu_us,
        table.render(),
    );
    text.push_str(&format!("not 2xx: {}   failed: {}\n", outcome.non_2xx, outcome.failed()));
    for (status, count) in &outcome.statuses {
        text.push_str(&format!("status {status}: {count}\n"));
    }
    for (failure, count) in &outcome.failures {
        text.push_str(&format!("{}: {count}\n", failure.describe()));
    }
    let cgroups = outcome.cgroup_cpu_us.iter().map(|spent| ("cgroup", spent));
    let processes = outcome.process_cpu_us.iter().map(|spent| ("process", spent));
    for (what, spent) in cgroups.chain(processes) {
        let each = *spent as f64 / outcome.requests.max(1) as f64;
        text.push_str(&format!("{what} CPU per request: {each:.1} us\n"));
    }
    text
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e7 => Ok(value),
        _ => Err("must be a number above 0 and at most 10000000".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    if text.parse() == Ok(0.0) { Ok(0.0) } else { positive(text) }
}
