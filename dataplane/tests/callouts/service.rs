//! Services of gRPC that filters ask.
#![allow(unreachable_pub)]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tonic::{Request, Response, Status, metadata::MetadataMap};

/// A service whose answers a test decides, and what it was asked.
pub struct Service<Q, A> {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<(MetadataMap, Q)>>>,
    gone: Arc<AtomicUsize>,
    _answer: std::marker::PhantomData<A>,
}

/// What answers one request. `Err(None)`: nothing ever does.
pub type Answer<Q, A> = fn(&Q) -> Result<A, Option<Status>>;

/// The state of a service, in its server.
pub struct Served<Q, A> {
    asked: Arc<Mutex<Vec<(MetadataMap, Q)>>>,
    gone: Arc<AtomicUsize>,
    answer: Answer<Q, A>,
}

/// Counts calls that were given up.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl<Q: Clone, A> Served<Q, A> {
    pub async fn serve(&self, request: Request<Q>) -> Result<Response<A>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.asked.lock().unwrap().push((metadata, request.clone()));
        match (self.answer)(&request) {
            Ok(answer) => Ok(Response::new(answer)),
            Err(Some(status)) => Err(status),
            Err(None) => {
                let _waiting = Waiting(self.gone.clone());
                std::future::pending().await
            }
        }
    }
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Service<Q, A> {
    /// Starts one. `router` makes a server of its state.
    pub fn start(
        answer: Answer<Q, A>,
        router: impl FnOnce(Served<Q, A>) -> tonic::transport::server::Router + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address");
        let (asked, gone) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let served = Served { asked: asked.clone(), gone: gone.clone(), answer };
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                router(served).serve_with_incoming(incoming).await.expect("served");
            });
        });
        Self { address, asked, gone, _answer: std::marker::PhantomData }
    }

    /// What it was asked so far, which is forgotten.
    pub fn asked(&self) -> Vec<(MetadataMap, Q)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The only request since it was asked for last.
    pub fn only(&self) -> Q {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "requests to the service");
        asked.remove(0).1
    }

    /// Calls that it never answered and that were given up.
    pub fn given_up(&self) -> usize {
        self.gone.load(Ordering::SeqCst)
    }
}
