//! Session tickets that are bound to the context that issued them.
//!
//! A resumed session skips the certificates. So a ticket is opened only where a full handshake would come to the same
//! result: the context (its listener, trust bundle, revocation lists and policy) is authenticated with it, and one that
//! changes in any of these refuses what it issued before.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};

use super::certificate::sha256;

/// What a context is, for the purpose of resumption.
pub(super) type Binding = [u8; 32];

const NAME_LEN: usize = 16;
const TIME_LEN: usize = 8;
const HEAD_LEN: usize = NAME_LEN + TIME_LEN + NONCE_LEN;

/// How long a key of the process's own encrypts; it decrypts for [`KEYS_KEPT`] times as long.
const KEY_LIFE: Duration = Duration::from_secs(3600);

const KEYS_KEPT: usize = 3;

/// A key that tickets are encrypted with.
struct Key {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

impl Key {
    /// Of `session_ticket_keys`: 80 bytes, of which the first 16 are the key's name.
    fn configured(bytes: &[u8]) -> Option<Self> {
        let (name, secret) = bytes.split_at_checked(NAME_LEN)?;
        Some(Self { name: name.try_into().ok()?, key: aead(&sha256(secret))? })
    }

    fn random() -> Option<Self> {
        let (mut name, mut secret) = ([0; NAME_LEN], [0; 32]);
        rand::fill(&mut name).ok()?;
        rand::fill(&mut secret).ok()?;
        Some(Self { name, key: aead(&secret)? })
    }
}

fn aead(secret: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, secret).ok().map(LessSafeKey::new)
}

/// Keys of the process's own, replaced by and by.
#[derive(Default)]
pub struct OwnKeys(Mutex<Vec<(Instant, Arc<Key>)>>);

impl OwnKeys {
    /// The newest first; makes a new one when that is due.
    fn keys(&self) -> Vec<Arc<Key>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.first().is_none_or(|(since, _)| since.elapsed() >= KEY_LIFE)
            && let Some(key) = Key::random()
        {
            keys.insert(0, (Instant::now(), Arc::new(key)));
            keys.truncate(KEYS_KEPT);
        }
        keys.retain(|(since, _)| since.elapsed() < KEY_LIFE * KEYS_KEPT as u32);
        keys.iter().map(|(_, key)| key.clone()).collect()
    }
}

impl fmt::Debug for OwnKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnKeys")
    }
}

/// Encrypts the tickets of one context.
pub(super) struct Tickets {
    keys: Keys,
    binding: Binding,
    lifetime: Duration,
}

enum Keys {
    Configured(Vec<Arc<Key>>),
    Own(Arc<OwnKeys>),
}

impl Tickets {
    /// With `session_ticket_keys`, the first of which encrypts. `None` when one is too short.
    pub(super) fn configured(keys: &[Arc<[u8]>], binding: Binding, lifetime: Duration) -> Option<Self> {
        let keys: Option<Vec<_>> = keys.iter().map(|bytes| Key::configured(bytes).map(Arc::new)).collect();
        Some(Self { keys: Keys::Configured(keys?), binding, lifetime })
    }

    /// With the process's keys.
    pub(super) fn own(keys: Arc<OwnKeys>, binding: Binding, lifetime: Duration) -> Self {
        Self { keys: Keys::Own(keys), binding, lifetime }
    }

    fn keys(&self) -> Vec<Arc<Key>> {
        match &self.keys {
            Keys::Configured(keys) => keys.clone(),
            Keys::Own(keys) => keys.keys(),
        }
    }

    fn seal(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        let key = self.keys().into_iter().next()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(HEAD_LEN + plain.len() + 16);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&now.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        let aad = self.aad(&ticket[..NAME_LEN + TIME_LEN]);
        let mut body = plain.to_vec();
        key.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .ok()?;
        ticket.extend_from_slice(&body);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (head, body) = ticket.split_at_checked(HEAD_LEN)?;
        let (label, nonce) = head.split_at(NAME_LEN + TIME_LEN);
        let (name, issued) = label.split_at(NAME_LEN);
        let issued = u64::from_be_bytes(issued.try_into().ok()?);
        if now.checked_sub(issued)? > self.lifetime.as_secs() {
            return None;
        }
        let key = self.keys().into_iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let plain = key.key.open_in_place(nonce, Aad::from(self.aad(label)), &mut body).ok()?;
        Some(plain.to_vec())
    }

    fn aad(&self, label: &[u8]) -> [u8; 32 + NAME_LEN + TIME_LEN] {
        let mut aad = [0; 32 + NAME_LEN + TIME_LEN];
        aad[..32].copy_from_slice(&self.binding);
        aad[32..].copy_from_slice(label);
        aad
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        // RFC 8446 section 4.6.1: at most a week.
        self.lifetime.as_secs().min(7 * 24 * 3600) as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, now())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// Sessions kept by the server; they live as long as a context with the same [`Binding`].
#[derive(Debug)]
pub(super) struct Sessions {
    cache: Arc<ServerSessionMemoryCache>,
    lifetime: Duration,
}

/// How many sessions a context remembers.
const SESSIONS_KEPT: usize = 1024;

impl Sessions {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { cache: ServerSessionMemoryCache::new(SESSIONS_KEPT), lifetime }
    }

    fn fresh(&self, mut value: Vec<u8>) -> Option<Vec<u8>> {
        let at = value.len().checked_sub(TIME_LEN)?;
        let since = u64::from_be_bytes(value.split_off(at).try_into().ok()?);
        (now().checked_sub(since)? <= self.lifetime.as_secs()).then_some(value)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, mut value: Vec<u8>) -> bool {
        value.extend_from_slice(&now().to_be_bytes());
        self.cache.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.cache.get(key).and_then(|value| self.fresh(value))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.cache.take(key).and_then(|value| self.fresh(value))
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_only_where_it_was_issued() {
        let own = Arc::new(OwnKeys::default());
        let hour = Duration::from_secs(3600);
        let here = Tickets::own(own.clone(), [1; 32], hour);
        let ticket = here.seal(b"secret", 1_000).unwrap();
        assert_eq!(here.open(&ticket, 1_000 + 3_600).unwrap(), b"secret");
        assert_eq!(here.open(&ticket, 1_000 + 3_601), None, "too old");
        assert_eq!(here.open(&ticket, 999), None, "from the future");
        assert_eq!(Tickets::own(own.clone(), [2; 32], hour).open(&ticket, 1_000), None, "another context");
        assert!(Tickets::own(own, [1; 32], hour).open(&ticket, 1_000).is_some(), "the same context anew");
        for at in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[at] ^= 1;
            assert_eq!(here.open(&bent, 1_000), None, "byte {at}");
            assert_eq!(here.open(&ticket[..at], 1_000), None, "{at} bytes");
        }
    }

    #[test]
    fn configured_keys_rotate() {
        let (old, new): (Arc<[u8]>, Arc<[u8]>) = ([1; 80].into(), [2; 80].into());
        let hour = Duration::from_secs(3600);
        let tickets = |keys: &[Arc<[u8]>]| Tickets::configured(keys, [0; 32], hour).unwrap();
        let ticket = tickets(std::slice::from_ref(&old)).seal(b"x", 0).unwrap();
        assert!(tickets(&[new.clone(), old]).open(&ticket, 0).is_some());
        assert!(tickets(&[new]).open(&ticket, 0).is_none());
        assert!(Tickets::configured(&[[0; 4].into()], [0; 32], hour).is_none());
    }
}
