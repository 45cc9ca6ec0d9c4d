//! What is required of a request: requirements as they are configured, with the places that each of them looks at.

use std::pin::Pin;

use culvert_model::{JwtAuthentication, JwtRequirement};

use super::{
    Authenticator,
    place::{self, Place, Places},
    token::{Fault, Token},
};
use crate::http::exchange::Exchange;

/// A token that is valid, and of which provider.
pub(super) struct Valid<'a> {
    pub(super) provider: usize,
    pub(super) place: &'a Place,
    pub(super) token: Token,
}

/// Tokens that are valid. Those of providers that are not `forward` are out of the request for whoever looks next.
pub(super) type Found<'a> = Vec<Valid<'a>>;

type Verifying<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + 'a>>;

/// A requirement on one worker.
pub(super) enum Requirement {
    All(Vec<Self>),
    Any {
        list: Vec<Self>,
        /// Whether requests without tokens for any of them pass.
        missing: bool,
        /// Whether all others do as well.
        failed: bool,
    },
    Provider {
        index: usize,
        audiences: Option<Vec<String>>,
        places: Places,
    },
    /// `allow_missing`, and with `failed` `allow_missing_or_failed`: whatever tokens there are, each of the provider
    /// that is its issuer.
    Open {
        places: Places,
        failed: bool,
    },
}

impl Requirement {
    pub(super) fn new(config: &JwtAuthentication, requirement: &JwtRequirement) -> Self {
        let open = |failed| Self::Open { places: Places::of(&config.providers), failed };
        match requirement {
            JwtRequirement::All(list) => Self::All(list.iter().map(|it| Self::new(config, it)).collect()),
            JwtRequirement::Any(list) => {
                let asks = |it: &&JwtRequirement| {
                    !matches!(it, JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed)
                };
                Self::Any {
                    list: list.iter().filter(asks).map(|it| Self::new(config, it)).collect(),
                    missing: list.contains(&JwtRequirement::AllowMissing),
                    failed: list.contains(&JwtRequirement::AllowMissingOrFailed),
                }
            }
            JwtRequirement::Provider { index, audiences } => Self::Provider {
                index: *index,
                audiences: audiences.clone(),
                places: Places::of([&config.providers[*index]]),
            },
            JwtRequirement::AllowMissing => open(false),
            JwtRequirement::AllowMissingOrFailed => open(true),
        }
    }

    pub(super) fn verify<'v, 'a: 'v>(
        &'a self,
        filter: &'a Authenticator,
        exchange: &'v Exchange<'_>,
        found: &'v mut Found<'a>,
    ) -> Verifying<'v> {
        Box::pin(async move {
            match self {
                Self::All(list) => {
                    for requirement in list {
                        requirement.verify(filter, exchange, found).await?;
                    }
                    Ok(())
                }
                Self::Any { list, missing, failed } => {
                    let mut fault = Fault::Missing;
                    for requirement in list {
                        match requirement.verify(filter, exchange, found).await {
                            Ok(()) => return Ok(()),
                            Err(other) if weight(other) >= weight(fault) => fault = other,
                            Err(_) => {}
                        }
                    }
                    if *failed || *missing && fault == Fault::Missing { Ok(()) } else { Err(fault) }
                }
                Self::Provider { index, audiences, places } => {
                    let tokens = places.tokens(&exchange.head, |place| is_taken(filter, found, place));
                    if tokens.is_empty() {
                        return Err(Fault::Missing);
                    }
                    // All of them have to be valid: who comes after may look at another one than this filter.
                    for token in tokens {
                        let audiences = audiences.as_deref();
                        found.push(filter.token(exchange, Some(*index), audiences, &token).await?);
                    }
                    Ok(())
                }
                Self::Open { places, failed } => {
                    let tokens = places.tokens(&exchange.head, |place| is_taken(filter, found, place));
                    // As with Envoy the one that is looked at last decides.
                    let mut outcome = Ok(());
                    for token in tokens {
                        let verified = filter.token(exchange, None, None, &token).await;
                        outcome = verified.map(|valid| found.push(valid));
                    }
                    if *failed { Ok(()) } else { outcome }
                }
            }
        })
    }
}

fn is_taken(filter: &Authenticator, found: &Found<'_>, place: &Place) -> bool {
    let gone = |it: &&Valid<'_>| !filter.config.providers[it.provider].forward;
    found.iter().filter(gone).any(|it| place::same(it.place, place))
}

/// Which of several faults is told: what is wrong with a token says more than that there is none.
fn weight(fault: Fault) -> u8 {
    match fault {
        Fault::Missing => 0,
        Fault::UnknownIssuer => 1,
        _ => 2,
    }
}
