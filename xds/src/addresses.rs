//! Which listener has which address.

use std::collections::HashMap;

use culvert_model::{Address, Listener};

use crate::{Error, resource::Kind};

/// The addresses of listeners, of which no two may have the same. Those with port 0 are not among them.
#[derive(Debug)]
pub(crate) struct Addresses<T>(HashMap<Address, T>);

impl<T> Default for Addresses<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Eq> Addresses<T> {
    /// An address of `listener`, called `id`, that another one has, and which one.
    pub(crate) fn taken<'a>(&self, id: T, listener: &'a Listener) -> Option<(&'a Address, T)> {
        addresses(listener).find_map(|address| {
            let other = self.0.get(address).copied().filter(|other| *other != id)?;
            Some((address, other))
        })
    }

    /// `listener` is called `id`. What another one has stays with that.
    pub(crate) fn add(&mut self, id: T, listener: &Listener) {
        for address in addresses(listener) {
            self.0.entry(address.clone()).or_insert(id);
        }
    }

    /// `listener`, called `id`, is not there any more.
    pub(crate) fn remove(&mut self, id: T, listener: &Listener) {
        for address in addresses(listener) {
            if self.0.get(address) == Some(&id) {
                self.0.remove(address);
            }
        }
    }
}

/// The error of a listener that wants an address which another one has.
pub(crate) fn duplicate(listener: &Listener, address: &Address, other: &str) -> Error {
    let reason = format!("duplicate address {address}, which listener {other:?} has");
    Error::invalid(Kind::Listener.title(&listener.name), "address", reason)
}

fn addresses(listener: &Listener) -> impl Iterator<Item = &Address> {
    let all = std::iter::once(&listener.address).chain(&listener.additional_addresses);
    all.filter(|address| !matches!(address, Address::Ip(ip) if ip.port() == 0))
}
