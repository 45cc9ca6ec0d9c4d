//! TCP checks.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    checked, flags, start,
    support::{DRIVERS, culvert::cluster, upstream::Upstream},
};

fn tcp(fields: &str) -> String {
    checked(&format!("healthy_threshold: 1\nunhealthy_threshold: 2\ntcp_health_check: {{{fields}}}\n"))
}

#[test]
fn a_connection_is_enough_without_an_answer_to_expect() {
    for driver in DRIVERS {
        let server = Upstream::start(|mut stream| {
            let _ = stream.read(&mut [0; 1]);
        });
        let dead = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
        let (culvert, _) = start(driver, &(cluster("up", &[server.address, dead]) + &tcp("")));
        assert_eq!(flags(&culvert, server.address).as_deref(), Some("healthy"));
        assert_eq!(flags(&culvert, dead).as_deref(), Some("/failed_active_hc"));
        assert!(culvert.stat("cluster.up.health_check.network_failure") >= 1);
        let revived = Upstream::on(TcpListener::bind(dead).expect("bound"), |mut stream| {
            let _ = stream.read(&mut [0; 1]);
        });
        culvert.wait_until("it is seen", |culvert| {
            flags(culvert, revived.address).as_deref() == Some("healthy")
        });
    }
}

#[test]
fn an_answer_is_waited_for() {
    for driver in DRIVERS {
        let right = Arc::new(AtomicBool::new(true));
        let told = right.clone();
        let server = Upstream::start(move |mut stream| {
            let mut asked = [0; 4];
            while stream.read_exact(&mut asked).is_ok() && asked == *b"ping" {
                let answer: &[u8] = if told.load(Ordering::SeqCst) { b"+PONG" } else { b"-LOAD" };
                // In two pieces.
                let _ = stream.write_all(&answer[..3]);
                let _ = stream.write_all(&answer[3..]);
                if answer[0] == b'-' {
                    return;
                }
            }
        });
        let checks = tcp("send: {text: \"70696e67\"}, receive: [{text: \"504f\"}, {binary: Rw==}]");
        let (culvert, _) = start(driver, &(cluster("up", &[server.address]) + &checks));
        assert_eq!(flags(&culvert, server.address).as_deref(), Some("healthy"));
        right.store(false, Ordering::SeqCst);
        culvert.wait_until("it failed", |culvert| {
            flags(culvert, server.address).as_deref() == Some("/failed_active_hc")
        });
        right.store(true, Ordering::SeqCst);
        culvert
            .wait_until("it is back", |culvert| flags(culvert, server.address).as_deref() == Some("healthy"));
        let seen = culvert.stat("cluster.up.health_check.success");
        culvert.wait_until("checks", |culvert| culvert.stat("cluster.up.health_check.success") > seen + 5);
    }
}
