//! Health checks of servers that are spoken to in TLS.

use std::sync::{Arc, Mutex};

use crate::{
    own, peer,
    pki::{Ca, Leaf},
    support::{
        DRIVERS,
        culvert::{Culvert, bootstrap, cluster, free_port, indent},
    },
    trusting, upstream,
};

#[test]
fn checks_are_made_over_tls_and_may_offer_protocols_of_their_own() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let client = ca.issue(&Leaf { dns: &["client.test"], ..Leaf::default() });
    let agreed: Arc<Mutex<Vec<Option<Vec<u8>>>>> = Arc::default();
    let seen = agreed.clone();
    let server = peer::server(&server, Some(&ca), &["http/1.1", "check"], move |stream| {
        seen.lock().expect("protocols").push(stream.conn.alpn_protocol().map(<[u8]>::to_vec));
        peer::mirror(stream);
    });
    let tls = own(&client) + &trusting(&ca, "") + "alpn_protocols: [http/1.1]\n";
    let check = "timeout: 20s\ninterval: 0.05s\nno_traffic_interval: 0.05s\nunhealthy_threshold: 1\n\
                 healthy_threshold: 1\nhttp_health_check: {path: /healthz}\n";
    for driver in DRIVERS {
        for (options, expected) in [("", "http/1.1"), ("tls_options: {alpn_protocols: [check]}\n", "check")] {
            let checks =
                format!("health_checks:\n- {}", indent(&format!("{check}{options}"), 2).trim_start());
            let cluster =
                cluster("up", &[server.address]) + &indent(&(upstream(&tls, "sni: a.test\n") + &checks), 2);
            let (admin, port) = (free_port(), free_port());
            let routes = "- {match: {prefix: /}, route: {cluster: up}}";
            let text = bootstrap(admin, port, "", routes, &cluster);
            let culvert = Culvert::start(driver, admin, &text);
            assert_eq!(culvert.stat("cluster.up.membership_healthy"), 1, "{}", culvert.log());
            let last = agreed.lock().expect("protocols").pop().expect("a connection");
            assert_eq!(last.as_deref(), Some(expected.as_bytes()));
        }
    }
}
