//! nginx's configuration.

use super::super::workload::Scenario;
use super::Job;

pub(super) fn config(job: &Job<'_>) -> String {
    let directory = job.directory.display();
    let (listen, tls) = match job.scenario {
        Scenario::Grpc => (" http2", String::new()),
        Scenario::Tls => {
            let pem = job.pem.display();
            (
                " ssl",
                format!(
                    "ssl_certificate {pem};\n  ssl_certificate_key {pem};\n  ssl_protocols TLSv1.3;\n  ssl_session_cache shared:tls:1m;\n  "
                ),
            )
        }
        _ => ("", String::new()),
    };
    let pass = if job.scenario == Scenario::Grpc {
        "grpc_pass grpc://backend;"
    } else {
        "proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";"
    };
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.err;
events {{ worker_connections 20000; }}
http {{
 access_log off;
 keepalive_requests 1000000000;
 keepalive_timeout 600s;
 client_body_temp_path {directory}/body;
 proxy_temp_path {directory}/proxy;
 fastcgi_temp_path {directory}/fastcgi;
 uwsgi_temp_path {directory}/uwsgi;
 scgi_temp_path {directory}/scgi;
 upstream backend {{ server {}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 600s; }}
 server {{
  listen {}{listen} backlog=4096;
  {tls}location / {{ {pass} }}
 }}
}}
",
        job.backend, job.listen
    )
}
