//! What it costs, in figures with `CULVERT_FULL=1 cargo test --release -p culvert-xds --lib scale -- --nocapture`.

use super::*;

fn large(name: &str, changed: u16) -> Json {
    let endpoint = |index: u16| {
        let address = json!({"socket_address": {"address": format!("10.{}.0.{index}", index % 7), "port_value": 8_000 + index}});
        json!({"endpoint": {"address": address}})
    };
    let endpoints: Vec<_> = (0..9).chain([100 + changed % 100]).map(endpoint).collect();
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]})
}

fn clusters(count: usize, millis: u32) -> Vec<Incoming> {
    (0..count).map(|i| resource(Kind::Cluster, &cluster(&format!("cluster-{i}"), millis))).collect()
}

/// Prints figures; fails only where they are out of all proportion.
#[test]
fn figures() {
    let is_full = std::env::var_os("CULVERT_FULL").is_some();
    for count in if is_full { [5_000, 20_000] } else { [100, 500] } {
        let mut f = fixture(BOOTSTRAP);
        let first = clusters(count, 1_000);
        let endpoints: Vec<_> =
            (0..count).map(|i| resource(Kind::LoadAssignment, &large(&format!("cluster-{i}"), 0))).collect();
        let timed =
            |label: &str, begun: Instant| println!("{count} clusters: {label}: {:?}", begun.elapsed());

        let begun = Instant::now();
        f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "1", first, None).unwrap();
        timed("CDS", begun);
        let begun = Instant::now();
        f.store.take_wanted().unwrap();
        timed("what is wanted", begun);
        let begun = Instant::now();
        f.deliver_to(SourceSpecifier::Ads, Kind::LoadAssignment, "1", endpoints, None).unwrap();
        timed("EDS", begun);
        let begun = Instant::now();
        f.store.compose().unwrap();
        timed("compose", begun);

        let again = clusters(count, 1_000);
        let begun = Instant::now();
        f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", again, None).unwrap();
        timed("the same CDS again", begun);

        let updates: Vec<_> = (1..101)
            .map(|i| Incoming {
                version: i.to_string(),
                ..resource(Kind::LoadAssignment, &large("cluster-77", i))
            })
            .collect();
        let mut longest = Duration::ZERO;
        let begun = Instant::now();
        for update in updates {
            let begun = Instant::now();
            f.deliver_to(SourceSpecifier::Ads, Kind::LoadAssignment, "", vec![update], Some(&[])).unwrap();
            assert_eq!(f.store.compose().unwrap().1.assignments.len(), 1);
            longest = longest.max(begun.elapsed());
        }
        println!(
            "{count} clusters: one endpoint: {:?} on average, {longest:?} at most",
            begun.elapsed() / 100
        );
        assert!(longest < Duration::from_secs(1));
    }
}
