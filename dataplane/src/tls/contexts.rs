//! The contexts of a process, by the configuration they were made from.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use culvert_model::{DownstreamTls, UpstreamTls};

use super::{ClientContext, OwnKeys, ServerContext, Slot};

/// Places for compiled contexts. Control fills them; a listener or cluster finds its own by the identity of its
/// configuration, once for each new connection.
#[derive(Debug, Default)]
pub struct Contexts {
    servers: Places<DownstreamTls, ServerContext>,
    clients: Places<UpstreamTls, ClientContext>,
    /// What session tickets are encrypted with where no keys are configured.
    pub keys: Arc<OwnKeys>,
}

impl Contexts {
    /// The place of a downstream context.
    pub fn server(&self, tls: &Arc<DownstreamTls>) -> Arc<Slot<ServerContext>> {
        self.servers.get(tls)
    }

    /// The place of an upstream context.
    pub fn client(&self, tls: &Arc<UpstreamTls>) -> Arc<Slot<ClientContext>> {
        self.clients.get(tls)
    }

    /// Gives `new`, which is equal, the place of `old`: a chain that an update left alone goes on with the old one.
    pub fn share_server(&self, old: &Arc<DownstreamTls>, new: &Arc<DownstreamTls>) {
        self.servers.share(old, new);
    }

    /// See [`Contexts::share_server`].
    pub fn share_client(&self, old: &Arc<UpstreamTls>, new: &Arc<UpstreamTls>) {
        self.clients.share(old, new);
    }

    /// Forgets the places of configurations that nobody has any more.
    pub fn prune(&self) {
        self.servers.prune();
        self.clients.prune();
    }
}

/// By the address of the configuration, which the entry keeps alive.
struct Places<K, C>(Mutex<HashMap<usize, Place<K, C>>>);

type Place<K, C> = (Arc<K>, Arc<Slot<C>>);

impl<K, C> Places<K, C> {
    fn get(&self, key: &Arc<K>) -> Arc<Slot<C>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = places.entry(Arc::as_ptr(key).addr()).or_insert_with(|| (key.clone(), Arc::default()));
        entry.1.clone()
    }

    fn share(&self, old: &Arc<K>, new: &Arc<K>) {
        let slot = self.get(old);
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert(Arc::as_ptr(new).addr(), (new.clone(), slot));
    }

    fn prune(&self) {
        // A configuration that only its own entry keeps alive cannot be asked for again.
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, (key, _)| Arc::strong_count(key) > 1);
    }
}

impl<K, C> Default for Places<K, C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, C> fmt::Debug for Places<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places")
    }
}
