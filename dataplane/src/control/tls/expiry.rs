//! `ssl.certificate.<name>.expiration_unix_time_seconds`: when the certificates in use end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    observe::stats::{Registry, Sample, StatSet},
    tls::{CertificateInfo, hex},
};

/// The gauges of all listeners and clusters, by scope.
#[derive(Default)]
pub(super) struct Expiries(HashMap<String, Arc<Gauges>>);

/// Seconds since 1970, by the name of the certificate.
type Times = BTreeMap<String, i64>;

#[derive(Default)]
struct Gauges(Mutex<Times>);

impl Expiries {
    /// Shows these and no others; gauges of new scopes appear in `registry`.
    pub(super) fn show(&mut self, times: HashMap<String, Times>, registry: &Registry) {
        self.0.retain(|scope, _| times.contains_key(scope));
        for (scope, times) in times {
            let gauges = self.0.entry(scope).or_insert_with_key(|scope| {
                let gauges = Arc::<Gauges>::default();
                registry.register(scope.clone(), gauges.clone());
                gauges
            });
            *gauges.0.lock().unwrap_or_else(PoisonError::into_inner) = times;
        }
    }
}

/// Adds certificates that are known under one name: the first to end counts.
pub(super) fn add(times: &mut Times, name: &str, certificates: &[Arc<CertificateInfo>], kind: &str) {
    for info in certificates {
        let name = match name {
            "" => format!("{kind}_{}", hex(&info.sha256[..4])),
            name => name.to_owned(),
        };
        let time = times.entry(name).or_insert(info.not_after);
        *time = (*time).min(info.not_after);
    }
}

impl StatSet for Gauges {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        for (name, time) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let name = format!("ssl.certificate.{name}.expiration_unix_time_seconds");
            f(&name, Sample::Flag { value: *time, used: true });
        }
    }
}
