//! The seeds of the fuzz targets, and every input that once broke a check.

use std::{fs, path::Path};

mod checks;

type Check = fn(&[u8]);

#[test]
fn the_checks_hold_for_all_seeds() {
    let targets: [(&str, Check); 10] = [
        ("blocks", checks::blocks),
        ("body", checks::body),
        ("frames", checks::frames),
        ("health", checks::health),
        ("http3", checks::http3),
        ("path", checks::path),
        ("request", checks::request),
        ("response", checks::response),
        ("route", checks::route),
        ("trace", checks::trace),
    ];
    for (target, check) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let mut count = 0;
        for seed in fs::read_dir(&folder).unwrap() {
            check(&fs::read(seed.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} has seeds", folder.display());
    }
}
