//! The hosts of a cluster's version before, of which those are taken that go on.

use std::{collections::HashMap, rc::Rc};

use culvert_model::Address;

use crate::{snapshot::ClusterSpec, upstream::Host};

/// Hosts by their address, several of one address in their order. Most versions differ little from the one before, so
/// the next in order is looked at first; only where that fails is there a map.
pub(super) struct Former {
    hosts: Vec<Option<Rc<Host>>>,
    /// Where to look next.
    next: usize,
    by_address: Option<HashMap<Address, Vec<usize>>>,
}

impl Former {
    pub(super) fn new(hosts: Vec<Rc<Host>>) -> Self {
        Self { hosts: hosts.into_iter().map(Some).collect(), next: 0, by_address: None }
    }

    /// Whether these are the addresses of `spec`, in any order. Before any is taken.
    pub(super) fn is_at(&self, spec: &ClusterSpec) -> bool {
        let mut ours: Vec<_> = self.hosts.iter().flatten().map(|host| host.spec()).collect();
        let mut theirs: Vec<_> = spec.hosts.iter().collect();
        ours.sort_unstable_by(|a, b| a.endpoint.address.cmp(&b.endpoint.address));
        theirs.sort_unstable_by(|a, b| a.endpoint.address.cmp(&b.endpoint.address));
        ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(|(ours, theirs)| ours.endpoint.address == theirs.endpoint.address)
    }

    /// One that is not taken, wherever it is.
    pub(super) fn any(&mut self) -> Option<Rc<Host>> {
        self.hosts.iter_mut().find_map(Option::take)
    }

    /// One at this address.
    pub(super) fn at(&mut self, address: &Address) -> Option<Rc<Host>> {
        let next = self.hosts.get_mut(self.next).and_then(|host| host.take_if(|host| host.is_at(address)));
        if next.is_some() {
            self.next += 1;
            return next;
        }
        let hosts = &self.hosts;
        let by_address = self.by_address.get_or_insert_with(|| {
            let mut by_address = HashMap::<Address, Vec<usize>>::new();
            for (index, host) in hosts.iter().enumerate().rev() {
                let Some(host) = host else { continue };
                by_address.entry(host.spec().endpoint.address.clone()).or_default().push(index);
            }
            by_address
        });
        let places = by_address.get_mut(address)?;
        // Those that were the next in order meanwhile are gone.
        let (index, host) =
            std::iter::from_fn(|| places.pop()).find_map(|at| Some((at, self.hosts[at].take()?)))?;
        self.next = index + 1;
        Some(host)
    }

    /// Those that were not taken.
    pub(super) fn rest(self) -> impl Iterator<Item = Rc<Host>> {
        self.hosts.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, rc::Rc, sync::Arc};

    use culvert_model::Address;

    use super::Former;
    use crate::{
        snapshot::HostState,
        upstream::{Host, original_dst::plain},
    };

    fn host(port: u16) -> Rc<Host> {
        Rc::new(Host::new(
            plain(SocketAddr::from(([127, 0, 0, 1], port)), (None, None), Arc::new(HostState::new(1))),
            0,
        ))
    }

    fn at(former: &mut Former, port: u16) -> Option<Rc<Host>> {
        former.at(&Address::Ip(SocketAddr::from(([127, 0, 0, 1], port))))
    }

    #[test]
    fn each_is_taken_once_in_any_order() {
        let hosts: Vec<_> = [1, 2, 2, 3, 4].into_iter().map(host).collect();
        let mut former = Former::new(hosts.clone());
        // In step, then not, then in step again, each of those that share an address once.
        for (port, index) in [(1, 0), (4, 4), (2, 1), (3, 3), (2, 2)] {
            assert!(at(&mut former, port).is_some_and(|host| Rc::ptr_eq(&host, &hosts[index])), "{index}");
        }
        assert!(at(&mut former, 2).is_none() && at(&mut former, 5).is_none());
        assert_eq!(former.rest().count(), 0);
    }

    #[test]
    fn what_is_not_taken_is_left() {
        let hosts: Vec<_> = [1, 2, 3].into_iter().map(host).collect();
        let mut former = Former::new(hosts.clone());
        assert!(at(&mut former, 9).is_none());
        assert!(at(&mut former, 2).is_some());
        assert!(at(&mut former, 3).is_some(), "goes on behind the last one");
        let left: Vec<_> = former.rest().collect();
        assert!(left.len() == 1 && Rc::ptr_eq(&left[0], &hosts[0]));
    }
}
